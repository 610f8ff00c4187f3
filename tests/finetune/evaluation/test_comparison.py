"""Differences, their intervals and tests, and how alike scores are."""

from itertools import product

import numpy as np
import pytest

from rankrt_finetune.evaluation.comparison import difference, interval, likeness
from rankrt_finetune.evaluation.rankings import Ranked


def ranked(scores: list[float]) -> Ranked:
    return Ranked(order=np.argsort([-s for s in scores], kind="stable"), scores=np.array(scores, np.float32))


def test_a_difference_counts_its_queries():
    found = difference(np.array([1, 0.5, 0, 0.2]), np.array([0, 0.5, 0.1, 0]))
    assert found.mean == pytest.approx(0.275)
    assert (found.n_better, found.n_worse) == (2, 1)


def test_the_p_value_of_few_queries_is_that_of_all_swaps():
    ours, theirs = np.array([0.9, 0.8, 0.4, 0.7, 0.5]), np.array([0.5, 0.6, 0.5, 0.3, 0.5])
    deltas = ours - theirs
    means = [np.mean(deltas * signs) for signs in product([1, -1], repeat=5)]
    expected = np.mean([abs(mean) >= abs(deltas.mean()) - 1e-12 for mean in means])
    assert difference(ours, theirs).p == pytest.approx(expected)


def test_an_interval_holds_the_true_difference_as_often_as_it_says():
    """95 % of 200 samples with a known difference; the binomial's own spread is 1.5 points."""
    random = np.random.default_rng(0)
    samples = [random.normal(0.1, 0.3, 60) for _ in range(200)]
    found = [interval(sample) for sample in samples]
    held = np.mean([ends is not None and ends[0] <= 0.1 <= ends[1] for ends in found])
    assert 0.89 <= held <= 0.99


def test_equal_systems_differ_by_nothing():
    found = difference(np.array([0.5, 1.0]), np.array([0.5, 1.0]))
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_same_difference_on_each_query_has_no_width():
    found = difference(np.full(8, 0.75), np.full(8, 0.5))
    assert (found.low, found.high) == (0.25, 0.25)
    assert found.p == pytest.approx(2 / 2**8)


def test_one_query_can_not_be_tested():
    found = difference(np.array([1.0]), np.array([0.0]))
    assert (found.mean, found.low, found.high, found.p) == (1, None, None, None)
    assert interval(np.array([1.0])) is None


def test_a_thousand_queries_are_compared_in_blocks():
    """All resamples at once would be 160 MB here; the figures are those of scipy whatever the blocks."""
    random = np.random.default_rng(0)
    found = difference(random.random(1000) + 0.05, random.random(1000))
    assert found.low is not None and found.high is not None and found.p is not None
    assert found.low < found.mean < found.high
    assert found.p < 0.01


def test_likeness_is_of_pairs_that_both_scored():
    ours = {"a": ranked([1, 2, 3]), "b": ranked([5, np.nan])}
    theirs = {"a": ranked([1, 2.5, 2.25]), "b": ranked([5.25, 0])}
    found = likeness(ours, theirs)
    assert found is not None
    assert found.max_drift == 0.75
    assert found.mean_drift == pytest.approx(1.5 / 4)
    assert found.tau == pytest.approx((1 / 3 + 1) / 2)  # one swap of three pairs; one score has no order
    assert likeness({"a": ranked([np.nan])}, {"a": ranked([1])}) is None
