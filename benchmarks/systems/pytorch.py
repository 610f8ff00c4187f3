"""PyTorch with transformers, as the model cards of rerankers show it: one batch, padded to its longest row."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import torch
import transformers

from benchmarks.systems import batches


class Sdpa:
    """fp32 with scaled-dot-product attention, which is transformers' default."""

    attention: ClassVar[str] = "sdpa"
    dtype: ClassVar[Any] = torch.float32
    device: ClassVar[str] = "cpu"

    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            model, dtype=self.dtype, attn_implementation=self.attention
        )
        self._model = self.changed(loaded.eval().to(self.device))
        self.versions = {name: version(name) for name in ("torch", "transformers")}

    def changed(self, model: Any) -> Any:
        """Return what the model becomes before it scores."""
        return model

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        with torch.inference_mode():
            return [
                logit
                for batch in batches(passages, batch_size)
                for logit in self._logits(self._rows(query, batch, max_length))
            ]

    def _rows(self, query: str, passages: Sequence[str], max_length: int) -> Mapping[str, Any]:
        pairs = [(query, passage) for passage in passages]
        rows: Mapping[str, Any] = self._tokenizer(
            pairs, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        ).to(self.device)
        return rows

    def _logits(self, rows: Mapping[str, Any]) -> list[float]:
        logits: list[float] = self._model(**rows).logits[:, 0].float().tolist()
        return logits


class Eager(Sdpa):
    """fp32 with attention as written in Python."""

    attention = "eager"


class Compiled(Sdpa):
    """torch.compile for shapes that change."""

    def changed(self, model: Any) -> Any:
        return torch.compile(model, dynamic=True)


class Bfloat16(Sdpa):
    """Weights and activations in bfloat16."""

    dtype = torch.bfloat16


class DynamicInt8(Sdpa):
    """PyTorch's own dynamic quantization of all linear layers."""

    def changed(self, model: Any) -> Any:
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


class CudaFloat16(Sdpa):
    """Half precision on the first GPU; the answer waits for it."""

    dtype = torch.float16
    device = "cuda"

    def __init__(self, model: str, n_threads: int) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA device on this machine")
        super().__init__(model, n_threads)
