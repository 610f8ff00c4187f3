"""FlagEmbedding's FlagReranker: sorted by length, padded batches of 128, and the first batch computed twice.

`compute_score` first runs one batch to find out whether it fits into memory, and discards the answer. The tokenizer's
class adds the special tokens. PreTrainedTokenizerFast, the class of some checkpoints of XLM-R's kind, adds none. Then
rows would lack <s> and </s>.
"""

from collections.abc import Sequence
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from FlagEmbedding import FlagReranker
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizerFast


class AsShipped:
    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._reranker = FlagReranker(model, use_fp16=False, devices="cpu")
        if type(self._reranker.tokenizer) is PreTrainedTokenizerFast:
            self._reranker.tokenizer = XLMRobertaTokenizerFast.from_pretrained(model)
        self.versions = {name: version(name) for name in ("FlagEmbedding", "torch", "transformers")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        scores: list[float] = self._reranker.compute_score(
            [(query, passage) for passage in passages], max_length=max_length, batch_size=batch_size or 128
        )
        return scores


class WithoutProbe(AsShipped):
    """The same without the batch whose answer is discarded."""

    def __init__(self, model: str, n_threads: int) -> None:
        super().__init__(model, n_threads)
        self._reranker.model = Unprobed(self._reranker.model)

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        self._reranker.model.is_probed = True
        return super().score(query, passages, max_length, batch_size)


class Unprobed:
    """A model whose first call in each request answers nothing."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.is_probed = False

    def to(self, device: str) -> None:
        self.model.to(device)

    def eval(self) -> None:
        self.model.eval()

    def __call__(self, **inputs: Any) -> Any:
        if self.is_probed:
            self.is_probed = False
            return SimpleNamespace(logits=torch.zeros(1))
        return self.model(**inputs)
