"""BM25 over a corpus, by bm25s. Words are runs of letters and digits; scripts without spaces give pairs of letters."""

import re
from collections.abc import Sequence
from itertools import pairwise

import bm25s
import numpy as np

from rankrt_finetune.mining.found import Found, best

# Chinese, Japanese and Thai, which are written without spaces: their "words" are pairs of characters that follow each
# other, the usual choice where there is no dictionary.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_WORD = re.compile(r"\w+")


class Bm25:
    """An index of passages. Lucene's variant of BM25 with k1 = 1.5 and b = 0.75, the defaults of bm25s."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._index = bm25s.BM25()
        self._index.index([words(passage) for passage in passages], show_progress=False)

    def find(self, queries: Sequence[str], n: int) -> list[Found]:
        """Return for each query the best n passages that share a word with it, best first."""
        found = []
        for query in queries:
            known = [word for word in words(query) if word in self._index.vocab_dict]
            scores = self._index.get_scores(known) if known else np.zeros(0, np.float32)
            ranked = best(scores, n)
            found.append(Found(passages=ranked[scores[ranked] > 0]))
        return found


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
