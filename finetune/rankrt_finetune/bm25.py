"""BM25 over texts that are read once, by bm25s.

Words are runs of letters and digits; scripts without spaces give pairs of letters. Texts are kept as numbers of words:
some 4 bytes a word while the index is built, then the index.
"""

import re
from array import array
from collections.abc import Iterable
from itertools import pairwise

import bm25s
import numpy as np

from rankrt.arrays import Float32Array

# Chinese, Japanese and Thai, which are written without spaces: their "words" are pairs of characters that follow each
# other, the usual choice where there is no dictionary.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_WORD = re.compile(r"\w+")


class Index:
    """An index of texts, by their places. Lucene's variant of BM25 with k1 = 1.5 and b = 0.75, bm25s's defaults."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}
        rows = [
            array("i", [self._numbers.setdefault(word, len(self._numbers)) for word in words(text)]) for text in texts
        ]
        self._n_texts = len(rows)
        self._index = bm25s.BM25()
        if self._numbers:  # without a word in any text bm25s would divide by 0
            # The last word stands for those that no text has.
            self._index.index((rows, {**self._numbers, "": len(self._numbers)}), show_progress=False)

    def scores(self, query: str) -> Float32Array:
        """Return the score of each text, (n_texts,); 0 for one that shares no word with the query."""
        known = [self._numbers[word] for word in words(query) if word in self._numbers]
        if not known:
            return np.zeros(self._n_texts, np.float32)
        return np.asarray(self._index.get_scores_from_ids(known), np.float32)


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        position = 0
        for run in _UNSPACED.finditer(word):
            found += [word[position : run.start()]] if run.start() > position else []
            found += [first + second for first, second in pairwise(run[0])] or [run[0]]
            position = run.end()
        found += [word[position:]] if position < len(word) else []
    return found
