"""The interfaces of FlagEmbedding and sentence-transformers over rankrt: change the import, keep the rest.

What they ignore without a word, and what cannot be honoured here, is an error. A reranker is pickled and copied as a
`Reranker` is.
"""

from rankrt.compat.flagembedding import (
    FlagAutoReranker,
    FlagLLMReranker,
    FlagReranker,
    LayerWiseFlagLLMReranker,
    LightWeightFlagLLMReranker,
)
from rankrt.compat.sentence_transformers import CrossEncoder

__all__ = [
    "CrossEncoder",
    "FlagAutoReranker",
    "FlagLLMReranker",
    "FlagReranker",
    "LayerWiseFlagLLMReranker",
    "LightWeightFlagLLMReranker",
]
