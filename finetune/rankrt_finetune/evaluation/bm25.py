"""BM25 over a corpus: the candidates of each query, and the row to compare with."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rankrt_finetune.bm25 import Index
from rankrt_finetune.evaluation.records import Candidates
from rankrt_finetune.mining.found import best


class Bm25:
    """An index of documents by their ids."""

    name = "BM25"

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        """Read the ids and texts of documents."""
        self.ids: list[str] = []
        self._index = Index(self._texts_of(documents))
        self._places = {name: i for i, name in enumerate(self.ids)}

    def search(self, query: str, n: int, *, without: str | None = None) -> Candidates:
        """Return the best n documents that share a word with a query; never the one whose id is `without`."""
        scores = self._index.scores(query)
        found = [i for i in best(scores, n + 1).tolist() if scores[i] > 0 and self.ids[i] != without][:n]
        return Candidates(ids=tuple(self.ids[i] for i in found), scores=tuple(scores[found].tolist()))

    def order(self, query: str, candidates: Sequence[str]) -> Candidates:
        """Return candidates, by their ids, in BM25's order. Equal scores keep theirs."""
        scores = self._index.scores(query)[[self._places[name] for name in candidates]]
        order = np.argsort(-scores, kind="stable")
        return Candidates(ids=tuple(candidates[i] for i in order), scores=tuple(scores[order].tolist()))

    def _texts_of(self, documents: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Yield the texts of documents, and keep the ids."""
        for name, text in documents:
            self.ids.append(name)
            yield text
