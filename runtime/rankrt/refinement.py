"""Ranking in two precisions: a fast one for all documents, an exact one for those that can still reach the top.

Knows scores only. The exact scores of the fast ranking's first n give a bar, and the n-th of the answer cannot be
below it. A document is out if it stays below the bar even if its fast score was too low by the whole drift. So the
answer is the exact one's as long as no score drifts by more than that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Float32Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """The first n of a ranking, and what they took.

    order      (n,) documents, best first
    scores     (n,) their exact scores
    n_refined  how many documents were scored exactly
    """

    order: Int64Array
    scores: Float32Array
    n_refined: int


def refine(scores: Float32Array, n: int, drift: float, exact: Callable[[Int64Array], Float32Array]) -> Refined:
    """Return the exact first n of documents with these fast scores, (n_documents,).

    `exact` returns the exact scores of the documents that it is given; it is called at most twice.
    """
    order = np.argsort(-scores, kind="stable")
    first, rest = order[:n], order[n:]
    found = exact(first)
    if len(rest):
        doubtful = rest[scores[rest] + np.float32(drift) >= found.min()]
        first, found = np.concatenate([first, doubtful]), np.concatenate([found, exact(doubtful)])
    best = np.lexsort((first, -found))[:n]  # equal scores keep the order in which the documents were given
    return Refined(order=first[best], scores=found[best], n_refined=len(first))
