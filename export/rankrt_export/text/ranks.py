"""The agreement of two orders of the same passages, query by query."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau

from rankrt.arrays import Float32Array
from rankrt_export.text.texts import Texts


def by_query(values: Float32Array, texts: Texts) -> Sequence[Float32Array]:
    """Divide values of all pairs, (n_pairs,), into those of each query."""
    ends = np.cumsum([len(question.passages) for question in texts.questions])
    return np.split(values, ends[:-1])


def taus(ours: Float32Array, theirs: Float32Array, texts: Texts) -> list[float]:
    """Return Kendall's tau of each query."""
    return [tau(a, b) for a, b in zip(by_query(ours, texts), by_query(theirs, texts), strict=True)]


def mean_tau(ours: Float32Array, theirs: Float32Array, texts: Texts) -> float:
    """Return Kendall's tau, the mean over the queries."""
    return float(np.mean(taus(ours, theirs, texts)))


def mean_overlap(ours: Float32Array, theirs: Float32Array, texts: Texts, k: int) -> float:
    """Return the share of the k best passages that both orders have, the mean over the queries."""
    pairs = zip(by_query(ours, texts), by_query(theirs, texts), strict=True)
    return float(np.mean([overlap(a, b, k) for a, b in pairs]))


def tau(ours: Float32Array, theirs: Float32Array) -> float:
    """Return Kendall's tau-b of two orders; 1 if one of them has no order (a single passage, or all equal)."""
    value = kendalltau(ours, theirs).statistic if len(ours) > 1 else 1.0
    return 1.0 if np.isnan(value) else float(value)


def overlap(ours: Float32Array, theirs: Float32Array, k: int) -> float:
    """Return the share of the k best that both score lists have."""
    best_of_ours, best_of_theirs = (set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (ours, theirs))
    return len(best_of_ours & best_of_theirs) / len(best_of_theirs)
