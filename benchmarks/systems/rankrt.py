"""rankrt, loaded by `Reranker.load`."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar

from rankrt import Reranker
from rankrt.artifact.precisions import InstructionSet, Precision


class Float32:
    """The fp32 variant of an artifact. It has no batch size: rows of all lengths share runs without padding."""

    precision: ClassVar[Precision] = "fp32"
    instruction_set: ClassVar[InstructionSet | None] = None

    def __init__(self, model: str, n_threads: int, device: str = "cpu") -> None:
        of_cpu: dict[str, Any] = {"n_threads": n_threads, "instruction_set": self.instruction_set}
        self._reranker = Reranker.load(
            model, precision=self.precision, device=device, **(of_cpu if device == "cpu" else {})
        )
        build = "onnxruntime" if device == "cpu" else "onnxruntime-gpu"
        self.versions = {name: version(name) for name in ("rankrt", build, "numpy", "tokenizers")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        reranker = self._reranker.with_rules(max_length=max_length, truncation="longest_first")
        scores: list[float] = reranker.score([(query, passage) for passage in passages]).tolist()
        return scores


class Float16(Float32):
    """Weights stored in half the bytes, computed in fp32."""

    precision = "fp16"


class Bfloat16(Float32):
    """OpenVINO's products in bfloat16, on processors that multiply it."""

    precision = "bf16"


class Int8(Float32):
    """Linear layers in int8, except those that cost too much, with the graph for this processor."""

    precision = "int8"


class Int8Avx2(Int8):
    """The graph for processors without VNNI."""

    instruction_set = "avx2"
