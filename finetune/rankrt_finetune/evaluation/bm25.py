"""BM25 over a corpus that is read once, by bm25s: the candidates of each query, and the row to compare with.

The corpus is kept as numbers of words, not as text: some 4 bytes a word while the index is built, then the index.
"""

from array import array
from collections.abc import Iterable, Sequence

import bm25s
import numpy as np

from rankrt.arrays import Float32Array
from rankrt_finetune.evaluation.records import Candidates
from rankrt_finetune.mining.bm25 import words
from rankrt_finetune.mining.found import best


class Bm25:
    """An index of documents by their ids. Lucene's variant of BM25 with k1 = 1.5 and b = 0.75, bm25s's defaults."""

    name = "BM25"

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        """Read the ids and texts of documents."""
        self._words: dict[str, int] = {}
        self.ids: list[str] = []
        rows: list[array[int]] = []
        for name, text in documents:
            self.ids.append(name)
            rows.append(array("i", [self._words.setdefault(word, len(self._words)) for word in words(text)]))
        self._places = {name: i for i, name in enumerate(self.ids)}
        self._index = bm25s.BM25()
        if self._words:  # without a word in any document bm25s would divide by 0
            # The last word stands for those that no document has.
            self._index.index((rows, {**self._words, "": len(self._words)}), show_progress=False)

    def search(self, query: str, n: int, *, without: str | None = None) -> Candidates:
        """Return the best n documents that share a word with a query; never the one whose id is `without`."""
        scores = self._scores(query)
        found = [i for i in best(scores, n + 1).tolist() if scores[i] > 0 and self.ids[i] != without][:n]
        return Candidates(ids=tuple(self.ids[i] for i in found), scores=tuple(scores[found].tolist()))

    def order(self, query: str, candidates: Sequence[str]) -> Candidates:
        """Return candidates, by their ids, in BM25's order. Equal scores keep theirs."""
        scores = self._scores(query)[[self._places[name] for name in candidates]]
        order = np.argsort(-scores, kind="stable")
        return Candidates(ids=tuple(candidates[i] for i in order), scores=tuple(scores[order].tolist()))

    def _scores(self, query: str) -> Float32Array:
        known = [self._words[word] for word in words(query) if word in self._words]
        if not known:
            return np.zeros(len(self.ids), np.float32)
        return np.asarray(self._index.get_scores_from_ids(known), np.float32)
