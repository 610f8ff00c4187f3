"""rankrt, as `Reranker.load` gives it."""

from collections.abc import Sequence
from importlib.metadata import version

from rankrt import Reranker


class Rankrt:
    def __init__(self, model: str, n_threads: int) -> None:
        self._reranker = Reranker.load(model, n_threads=n_threads)
        self.versions = {name: version(name) for name in ("rankrt", "onnxruntime", "numpy", "tokenizers")}

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        reranker = self._reranker.with_rules(max_length=max_length, truncation="longest_first")
        scores: list[float] = reranker.score([(query, passage) for passage in passages]).tolist()
        return scores
