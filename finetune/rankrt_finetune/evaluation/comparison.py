"""Two systems on the same queries: how far their means are apart, whether by chance, and how alike their scores are.

The interval is that of a paired bootstrap over the queries. The p-value is that of a randomisation test, which swaps
the two systems' values of a query. Both are scipy's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, permutation_test

from rankrt.arrays import Float64Array
from rankrt_export.text.ranks import tau
from rankrt_finetune.evaluation.rankings import Ranked

CONFIDENCE = 0.95
N_RESAMPLES = 9999
# Values that are resampled at once: 2 MB, of which scipy has a few copies.
_BATCH_VALUES = 250_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The mean of a measure less another system's, on the same queries.

    low, high            the 95 % interval; None for fewer than two queries, where nothing can be resampled
    p                    how often chance alone gives a difference as large; None likewise
    n_better, n_worse    how many queries have a higher, and a lower value
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n_better: int
    n_worse: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike the scores of two systems with the same weights are.

    max_drift, mean_drift   of the scores of a pair
    tau                     Kendall's, the mean over the queries
    """

    max_drift: float
    mean_drift: float
    tau: float


def difference(ours: Float64Array, theirs: Float64Array) -> Difference:
    """Compare the values of two systems, (n_queries,) each."""
    deltas = ours - theirs
    low = high = p = None
    if len(deltas) > 1:
        low, high, p = (0.0, 0.0, 1.0) if not deltas.any() else (*_interval(deltas), _p_value(deltas))
    return Difference(
        mean=float(deltas.mean()),
        low=low,
        high=high,
        p=p,
        n_better=int((deltas > 0).sum()),
        n_worse=int((deltas < 0).sum()),
    )


def likeness(ours: Mapping[str, Ranked], theirs: Mapping[str, Ranked]) -> Likeness | None:
    """Compare the scores of the same pairs, those that both systems scored; None if there are none."""
    drifts: list[Float64Array] = []
    taus: list[float] = []
    for query, mine in ours.items():
        both = np.isfinite(mine.scores) & np.isfinite(theirs[query].scores)
        if both.any():
            a, b = mine.scores[both], theirs[query].scores[both]
            drifts.append(np.abs(a.astype(np.float64) - b))
            taus.append(tau(a, b))
    if not drifts:
        return None
    all_drifts = np.concatenate(drifts)
    return Likeness(max_drift=float(all_drifts.max()), mean_drift=float(all_drifts.mean()), tau=float(np.mean(taus)))


def interval(values: Float64Array) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of values; None for fewer than two."""
    return _interval(values) if len(values) > 1 else None


def _interval(values: Float64Array) -> tuple[float, float]:
    if not np.ptp(values):
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=N_RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _p_value(deltas: Float64Array) -> float:
    """Return the two-sided p-value. It is exact if there are fewer swaps than resamples."""
    found = permutation_test(
        (deltas, np.zeros_like(deltas)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=N_RESAMPLES,
        batch=max(1, _BATCH_VALUES // (2 * len(deltas))),
        rng=0,
    )
    return float(found.pvalue)
