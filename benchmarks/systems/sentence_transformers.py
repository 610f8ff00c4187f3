"""sentence-transformers' CrossEncoder: it sorts by length itself and pads batches of 32."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from sentence_transformers import CrossEncoder


class Torch:
    """In PyTorch, fp32."""

    backend: ClassVar[str] = "torch"
    parts: ClassVar[tuple[str, ...]] = ("sentence-transformers", "torch", "transformers")

    def __init__(self, model: str, n_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(n_threads)
        self._model = CrossEncoder(model, device=device, backend=self.backend, model_kwargs=self.options(n_threads))
        self.versions = {name: version(name) for name in self.parts}

    def options(self, n_threads: int) -> dict[str, Any]:
        """Return the options for the backend."""
        return {"dtype": torch.float32}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        self._model.max_length = max_length
        scores: list[float] = self._model.predict(
            [(query, passage) for passage in passages],
            batch_size=batch_size or 32,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        ).tolist()
        return scores


class Onnx(Torch):
    """In ONNX Runtime, through Optimum, with the graph as exported."""

    backend = "onnx"
    parts = ("sentence-transformers", "optimum-onnx", "onnxruntime", "transformers")

    def options(self, n_threads: int) -> dict[str, Any]:
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = n_threads
        return {"provider": "CPUExecutionProvider", "session_options": session}


class OpenVino(Torch):
    """In OpenVINO, through Optimum Intel, which computes in bfloat16 if the processor has it."""

    backend = "openvino"
    parts = ("sentence-transformers", "optimum-intel", "openvino", "transformers")

    def options(self, n_threads: int) -> dict[str, Any]:
        return {"ov_config": {"INFERENCE_NUM_THREADS": str(n_threads)}}


def to_onnx(checkpoint: Path, out: Path) -> None:
    """Export as at the first load."""
    CrossEncoder(str(checkpoint), device="cpu", backend="onnx").save_pretrained(str(out))


def to_openvino(checkpoint: Path, out: Path) -> None:
    """Convert as at the first load."""
    CrossEncoder(str(checkpoint), device="cpu", backend="openvino").save_pretrained(str(out))
