"""What a search finds for a query."""

from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Float32Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Passages of a corpus by their numbers, best first, and their scores from 0 to 1 if the search gives such."""

    passages: Int64Array
    scores: Float32Array | None = None


def best(scores: Float32Array, n: int) -> Int64Array:
    """Return the places of the n highest scores, best first; equal scores keep their order."""
    if n >= len(scores):
        return np.argsort(-scores, kind="stable")
    bar = np.partition(scores, len(scores) - n)[len(scores) - n]
    above, at = np.flatnonzero(scores > bar), np.flatnonzero(scores == bar)
    kept = np.sort(np.concatenate([above, at[: n - len(above)]]))
    return kept[np.argsort(-scores[kept], kind="stable")]
