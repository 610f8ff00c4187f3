"""Fitting the map, by scikit-learn, and how well it fits: reliability, expected calibration error and thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.artifact.calibration import Isotonic, Platt
from rankrt.errors import InputError
from rankrt.scoring import sigmoid

Method: TypeAlias = Literal["platt", "isotonic"]
METHODS: tuple[Method, ...] = ("platt", "isotonic")
N_BINS = 10
_N_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Pairs of similar probability: how many, their mean probability, and the share of them that is relevant."""

    n_pairs: int
    probability: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How probabilities compare with what is relevant, in bins of equal width from 0 to 1. Empty bins are left out.

    error   the expected calibration error: the mean distance of a bin's probability from its share, by pairs
    """

    bins: tuple[Bin, ...]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A map, and its reliability before and after: that of the sigmoid, and that of maps on pairs they never saw."""

    map: Platt | Isotonic
    before: Reliability
    after: Reliability


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The logit from which on a share is reached: of precision the lowest such logit, of recall the highest."""

    goal: Literal["precision", "recall"]
    wanted: float
    logit: float
    precision: float
    recall: float


def fit(logits: Float32Array, is_relevant: BoolArray, query_of_pair: Int64Array, method: Method) -> Fitted:
    """Fit a map from logits to the probability that a pair is relevant.

    Raises InputError if relevant pairs do not score higher than the others: no rising map would help.
    """
    if roc_auc_score(is_relevant, logits) <= 0.5:
        raise InputError(
            "relevant pairs do not score higher than the others, so scores say nothing about these labels. Are the"
            " labels the right way around?"
        )
    held_out = np.zeros(len(logits), np.float32)
    for train, test in _folds(logits, is_relevant, query_of_pair):
        held_out[test] = _fitted(logits[train], is_relevant[train], method).probabilities(logits[test])
    return Fitted(
        map=_fitted(logits, is_relevant, method),
        before=reliability(sigmoid(logits), is_relevant),
        after=reliability(held_out, is_relevant),
    )


def reliability(probabilities: Float32Array, is_relevant: BoolArray) -> Reliability:
    """Compare probabilities with labels, bin by bin."""
    bin_of_pair = np.minimum((probabilities * N_BINS).astype(np.int64), N_BINS - 1)
    bins = tuple(
        Bin(
            n_pairs=int(inside.sum()),
            probability=float(probabilities[inside].mean(dtype=np.float64)),
            share=float(is_relevant[inside].mean()),
        )
        for inside in (bin_of_pair == number for number in np.unique(bin_of_pair))
    )
    error = sum(found.n_pairs * abs(found.probability - found.share) for found in bins) / len(probabilities)
    return Reliability(bins=bins, error=error)


def thresholds(
    logits: Float32Array, is_relevant: BoolArray, precisions: Sequence[float], recalls: Sequence[float]
) -> Iterator[Threshold]:
    """Yield a threshold for each precision and recall that is wanted; one that no threshold reaches is left out.

    A threshold is in the middle between the lowest score that it keeps and the next one, so that it may be rounded.
    """
    precision, recall, at = precision_recall_curve(is_relevant, logits)
    precision, recall = precision[:-1], recall[:-1]  # the last point keeps nothing
    below = np.concatenate([[at[0]], (at[:-1].astype(np.float64) + at[1:]) / 2])
    for goal, shares, wanted in (("precision", precision, precisions), ("recall", recall, recalls)):
        for share in wanted:
            reached = np.flatnonzero(shares >= share)
            if len(reached):
                i = int(reached[0] if goal == "precision" else reached[-1])
                yield Threshold(
                    goal="precision" if goal == "precision" else "recall",
                    wanted=share,
                    logit=float(below[i]),
                    precision=float(precision[i]),
                    recall=float(recall[i]),
                )


def _fitted(logits: Float32Array, is_relevant: BoolArray, method: Method) -> Platt | Isotonic:
    return _isotonic(logits, is_relevant) if method == "isotonic" else _platt(logits, is_relevant)


def _platt(logits: Float32Array, is_relevant: BoolArray) -> Platt:
    """Fit Platt's sigmoid. His targets stop short of 0 and 1, so that pairs that are told apart have a finite slope."""
    n_relevant, n_others = int(is_relevant.sum()), int((~is_relevant).sum())
    targets = np.where(is_relevant, (n_relevant + 1) / (n_relevant + 2), 1 / (n_others + 2))
    line = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    line.fit(
        np.tile(logits.astype(np.float64), 2)[:, None],
        np.repeat([1, 0], len(logits)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    try:
        return Platt(slope=float(line.coef_[0, 0]), intercept=float(line.intercept_[0]))
    except ValueError as error:
        raise InputError(f"no rising sigmoid fits these labels ({error}); try --method isotonic") from error


def _isotonic(logits: Float32Array, is_relevant: BoolArray) -> Isotonic:
    found = IsotonicRegression(y_min=0, y_max=1).fit(logits.astype(np.float64), is_relevant.astype(np.float64))
    return Isotonic(logits=tuple(found.X_thresholds_.tolist()), knots=tuple(found.y_thresholds_.tolist()))


def _folds(
    logits: Float32Array, is_relevant: BoolArray, query_of_pair: Int64Array
) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield the pairs to fit to and those to measure on. No query is in both, if there are enough queries for that."""
    n_queries = min(len(np.unique(query_of_pair[chosen])) for chosen in (is_relevant, ~is_relevant))
    if n_queries >= 2 * _N_FOLDS:
        yield from StratifiedGroupKFold(_N_FOLDS).split(logits, is_relevant, query_of_pair)
    else:
        yield from StratifiedKFold(_N_FOLDS, shuffle=True, random_state=0).split(logits, is_relevant)
