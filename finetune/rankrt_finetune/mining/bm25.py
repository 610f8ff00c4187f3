"""BM25 as a search for hard negatives."""

from collections.abc import Sequence

from rankrt_finetune.bm25 import Index
from rankrt_finetune.mining.found import Found, best


class Bm25:
    """An index of passages."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._index = Index(passages)

    def find(self, queries: Sequence[str], n: int) -> list[Found]:
        """Return for each query the best n passages that share a word with it, best first."""
        found = []
        for query in queries:
            scores = self._index.scores(query)
            ranked = best(scores, n)
            found.append(Found(passages=ranked[scores[ranked] > 0]))
        return found
