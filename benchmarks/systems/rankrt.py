"""rankrt, as `Reranker.load` gives it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

from rankrt import Reranker
from rankrt.artifact import Precision


class Rankrt:
    """The fp32 variant of an artifact."""

    precision: ClassVar[Precision] = "fp32"

    def __init__(self, model: str, n_threads: int) -> None:
        self._reranker = Reranker.load(model, precision=self.precision, n_threads=n_threads)
        self.versions = {name: version(name) for name in ("rankrt", "onnxruntime", "numpy", "tokenizers")}

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        reranker = self._reranker.with_rules(max_length=max_length, truncation="longest_first")
        scores: list[float] = reranker.score([(query, passage) for passage in passages]).tolist()
        return scores


class RankrtInt8(Rankrt):
    """The int8 variant of the same artifact."""

    precision = "int8"
