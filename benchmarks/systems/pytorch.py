"""PyTorch with transformers, as the model cards of rerankers show it: one batch, padded to its longest row."""

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import torch
import transformers

from benchmarks.systems import batches

# 1.1 TFLOP a product: milliseconds on the fastest GPU, so the launch does not count.
_GEMM_ROWS, _N_PRODUCTS = 8192, 5


class Sdpa:
    """fp32 with scaled-dot-product attention, which is transformers' default."""

    attention: ClassVar[str] = "sdpa"
    dtype: ClassVar[Any] = torch.float32

    def __init__(self, model: str, n_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(n_threads)
        self.device = device
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            model, dtype=self.dtype, attn_implementation=self.attention
        )
        self._model = self.change(loaded.eval().to(self.device))
        self.versions = {name: version(name) for name in ("torch", "transformers")}

    def change(self, model: Any) -> Any:
        """Return the model in the form that scores."""
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

    def change(self, model: Any) -> Any:
        return torch.compile(model, dynamic=True)


class Bfloat16(Sdpa):
    """Weights and activations in bfloat16."""

    dtype = torch.bfloat16


class DynamicInt8(Sdpa):
    """PyTorch's own dynamic quantization of all linear layers."""

    def change(self, model: Any) -> Any:
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


class Float16(Sdpa):
    """Weights and activations in half precision, for a GPU."""

    dtype = torch.float16


class CompiledFloat16(Compiled):
    """torch.compile in half precision, for a GPU."""

    dtype = torch.float16


class Gemm:
    """Answers a GPU's TFLOP/s instead of scores: one repeated product of large matrices in half precision."""

    def __init__(self, model: str, n_threads: int, device: str) -> None:
        self._a, self._b = (torch.randn(_GEMM_ROWS, _GEMM_ROWS, device=device, dtype=torch.float16) for _ in range(2))
        self.versions = {"torch": version("torch")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        return [2e-12 * _GEMM_ROWS**3 / min(self._seconds() for _ in range(10))]

    def _seconds(self) -> float:
        torch.cuda.synchronize(self._a.device)
        started = time.perf_counter()
        for _ in range(_N_PRODUCTS):
            torch.matmul(self._a, self._b)
        torch.cuda.synchronize(self._a.device)
        return (time.perf_counter() - started) / _N_PRODUCTS
