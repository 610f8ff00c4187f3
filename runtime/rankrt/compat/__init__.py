"""The interfaces of FlagEmbedding and sentence-transformers over rankrt: change the import, keep the rest.

What they ignore without a word, and what cannot be honoured here, is an error. A reranker is pickled and copied as a
`Reranker` is.
"""

from rankrt.compat.flagembedding import FlagLLMReranker, FlagReranker, LayerWiseFlagLLMReranker
from rankrt.compat.sentence_transformers import CrossEncoder

__all__ = ["CrossEncoder", "FlagLLMReranker", "FlagReranker", "LayerWiseFlagLLMReranker"]
