"""Statistics of seconds: percentiles, spread, ratios within a run, intervals between runs. Knows numbers only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

# A percentile has a meaning only with a value beyond it: 20 calls for p95, 100 for p99.
_PERCENTILES = (50, 95, 99)
_CONFIDENCE = 0.95
_N_RESAMPLES = 4999


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99 in milliseconds; None if there are too few values for one."""
    return {
        f"p{q}_ms": 1e3 * float(np.percentile(seconds, q)) if q == 50 or len(seconds) * (100 - q) >= 100 else None
        for q in _PERCENTILES
    }


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles, as a share of the median."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float((high - low) / middle)


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring measurements. A drift of the machine's speed cancels in it."""
    return float(np.median(np.divide(values, others)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A ratio of new to old, and its 95 % confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether it exceeds the noise."""
        return self.low > 1 or self.high < 1


def change(old: Sequence[float], new: Sequence[float]) -> Change:
    """Return the change of the median, with a bootstrap interval over both runs' values.

    Raises ValueError for fewer than 2 values on a side, because one value shows no noise.
    """
    if min(len(old), len(new)) < 2:
        raise ValueError(f"{len(old)} and {len(new)} values, expected at least 2 on each side")
    found = bootstrap(
        (np.asarray(new), np.asarray(old)),
        _ratio_of_medians,
        n_resamples=_N_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=0,
    )
    low, high = found.confidence_interval
    return Change(ratio=float(np.median(new) / np.median(old)), low=float(low), high=float(high))


def mean_change(changes: Sequence[float]) -> Change:
    """Return the geometric mean of the changes of many cases, with a bootstrap interval over the cases."""
    logs = np.log(changes)
    if len(logs) < 2:
        return Change(ratio=float(np.exp(logs.mean())), low=0.0, high=float("inf"))
    found = bootstrap((logs,), np.mean, n_resamples=_N_RESAMPLES, method="percentile", rng=0)
    low, high = np.exp(found.confidence_interval)
    return Change(ratio=float(np.exp(logs.mean())), low=float(low), high=float(high))


def _ratio_of_medians(new: np.ndarray, old: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(np.median(new, axis=axis) / np.median(old, axis=axis))
