"""FlagEmbedding's FlagLLMReranker and LayerWiseFlagLLMReranker in fp32, without the batch whose answer is discarded.

Both would run the first batch of a call twice, to find out whether it fits into memory. The layerwise model's scores
are those of its last layer. A tokenizer without a padding token gets one. transformers 4.57 runs MiniCPM only without
`use_cache`.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from FlagEmbedding.inference.reranker.decoder_only import FlagLLMReranker, LayerWiseFlagLLMReranker

from benchmarks.systems.flagembedding import Unprobed

_LAYERWISE = "LayerWiseMiniCPMForCausalLM"


class WithoutProbe:
    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        config = json.loads((Path(model) / "config.json").read_text())
        reranker: Any = (
            LayerWiseFlagLLMReranker(model, devices="cpu", cutoff_layers=[config["num_hidden_layers"]])
            if config["architectures"] == [_LAYERWISE]
            else FlagLLMReranker(model, devices="cpu")
        )
        reranker.tokenizer.pad_token = reranker.tokenizer.pad_token or "</s>"
        reranker.model.config.use_cache = False
        reranker.model = Unprobed(reranker.model)
        self._reranker = reranker
        self.versions = {name: version(name) for name in ("FlagEmbedding", "torch", "transformers")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        self._reranker.model.is_probed = True
        scores: list[float] = self._reranker.compute_score(
            [(query, passage) for passage in passages], max_length=max_length, batch_size=batch_size or 128
        )
        return scores
