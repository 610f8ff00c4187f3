"""One file a system, each loaded in a process of its own."""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol


class System(Protocol):
    """An engine with a model loaded. Constructed with the model's folder and a thread budget."""

    @property
    def versions(self) -> dict[str, str]:
        """The versions of what computes."""
        ...

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        """Return the logit of each passage, in order."""
        ...


# Where a system is and what it is given: rankrt an artifact, all others the checkpoint.
SYSTEMS = {
    "rankrt": "benchmarks.systems.rankrt:Rankrt",
    "rankrt-int8": "benchmarks.systems.rankrt:RankrtInt8",
    "onnxruntime-dynamic": "benchmarks.systems.onnxruntime_dynamic:Dynamic",
    "pytorch-dynamic": "benchmarks.systems.pytorch:DynamicInt8",
    "pytorch-sdpa": "benchmarks.systems.pytorch:RowByRow",
    "sentence-transformers": "benchmarks.systems.sentence_transformers:AsShipped",
    "sgemm": "benchmarks.systems.sgemm:Sgemm",
    "sgemm-from-memory": "benchmarks.systems.sgemm:SgemmFromMemory",
}


def open_system(name: str, model: str, n_threads: int) -> System:
    """Import and construct the system of that name."""
    module, _, attribute = SYSTEMS[name].partition(":")
    system: System = getattr(import_module(module), attribute)(model, n_threads)
    return system
