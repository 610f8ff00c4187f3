"""Two precisions, one ranking: the exact first n, for as few exact scores as the drift allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt.arrays import Float32Array
from rankrt.refinement import Refined, refine

EXACT = np.array([5.0, 1.0, 4.0, 3.9, 0.0], np.float32)


def refined(fast: Float32Array, n: int, drift: float, exact: Float32Array = EXACT) -> Refined:
    return refine(fast, n, drift, lambda documents: exact[documents])


def test_documents_that_cannot_reach_the_top_are_not_scored_again():
    fast = np.array([5.1, 1.1, 3.9, 4.0, 0.1], np.float32)
    found = refined(fast, 2, drift=0.2)
    assert found.order.tolist() == [0, 2]
    assert found.scores.tolist() == [5.0, 4.0]
    assert found.n_refined == 3


def test_without_drift_only_the_first_are_scored_again():
    assert refined(EXACT, 2, drift=0.0).n_refined == 2


def test_more_than_there_are_is_all_of_them():
    found = refined(EXACT, 9, drift=0.1)
    assert found.order.tolist() == [0, 2, 3, 1, 4]
    assert found.n_refined == 5


def test_no_document_is_no_answer():
    nothing = np.zeros(0, np.float32)
    assert refined(nothing, 3, drift=1.0, exact=nothing).n_refined == 0


def test_equal_scores_keep_the_order_in_which_they_were_given():
    exact = np.array([1.0, 1.0, 1.0], np.float32)
    fast = np.array([0.9, 1.0, 1.1], np.float32)
    assert refined(fast, 2, drift=0.2, exact=exact).order.tolist() == [0, 1]


@given(
    exact=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40),
    drift=st.floats(0, 2),
    n=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_the_answer_is_the_exact_one_whatever_the_drift_within_its_limit(
    exact: list[float], drift: float, n: int, seed: int
):
    scores = np.array(exact, np.float32)
    noise = np.random.RandomState(seed).uniform(-1, 1, len(scores)) * drift
    found = refined((scores + noise).astype(np.float32), n, drift * 1.001 + 1e-5, scores)
    assert found.scores.tolist() == pytest.approx(np.sort(scores)[::-1][:n].tolist())
