"""The decoder classes that can be exported, and the family that each belongs to. Knows no graph."""

from collections.abc import Mapping
from typing import Literal

DecoderFamily = Literal["gemma", "llama", "qwen3"]

DECODERS: Mapping[str, DecoderFamily] = {
    "GemmaForCausalLM": "gemma",
    "GemmaForSequenceClassification": "gemma",
    "LayerWiseMiniCPMForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "LlamaForSequenceClassification": "llama",
    "MistralForCausalLM": "llama",
    "MistralForSequenceClassification": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen2ForSequenceClassification": "llama",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3ForSequenceClassification": "qwen3",
}
