"""The decoder classes that can be exported, and the family that each belongs to. Knows no graph."""

from collections.abc import Mapping
from typing import Literal

DecoderFamily = Literal["gemma", "gemma2", "llama", "qwen3"]
# FlagEmbedding's classes, of bge-reranker-v2-minicpm-layerwise and bge-reranker-v2.5-gemma2-lightweight.
LAYERWISE, LIGHTWEIGHT = "LayerWiseMiniCPMForCausalLM", "CostWiseGemmaForCausalLM"

DECODERS: Mapping[str, DecoderFamily] = {
    LIGHTWEIGHT: "gemma2",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma2ForSequenceClassification": "gemma2",
    "GemmaForCausalLM": "gemma",
    "GemmaForSequenceClassification": "gemma",
    LAYERWISE: "llama",
    "LlamaForCausalLM": "llama",
    "LlamaForSequenceClassification": "llama",
    "MistralForCausalLM": "llama",
    "MistralForSequenceClassification": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen2ForSequenceClassification": "llama",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3ForSequenceClassification": "qwen3",
}
