"""The measures against what can be worked out by hand, and chance against all orders there are."""

from itertools import permutations
from math import log2
from statistics import fmean

import pytest

pytest.importorskip("transformers", reason="needs the export extra: pip install 'rankrt[export]'")

from tiny_reranker.corpus import Question
from tiny_reranker.evaluation import labels_by_score
from tiny_reranker.ranking import expected_ndcg, expected_reciprocal_rank, ndcg, reciprocal_rank

pytestmark = pytest.mark.export


def test_ndcg_is_one_for_the_best_order_and_falls_with_the_rank():
    assert ndcg([1, 0, 0]) == 1
    assert ndcg([0, 1, 0]) == pytest.approx(1 / log2(3))
    assert ndcg([0, 1, 1]) == pytest.approx((1 / log2(3) + 1 / 2) / (1 + 1 / log2(3)))


def test_ranks_behind_the_tenth_count_for_nothing():
    assert ndcg([0] * 10 + [1]) == 0
    assert reciprocal_rank([0] * 10 + [1]) == 0


def test_the_reciprocal_rank_is_the_first_relevant_one_s():
    assert reciprocal_rank([0, 0, 1, 1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("labels", [[1, 0, 0], [1, 1, 0, 0], [1] + [0] * 6])
def test_chance_is_the_mean_over_all_orders(labels: list[int]):
    orders = [list(order) for order in permutations(labels)]
    assert expected_ndcg(labels) == pytest.approx(fmean(map(ndcg, orders)))
    assert expected_reciprocal_rank(labels) == pytest.approx(fmean(map(reciprocal_rank, orders)))


def test_equal_scores_do_not_inherit_bm25_s_order():
    question = Question(text="?", candidates=("a", "b", "c"), relevant=frozenset("a"))
    assert labels_by_score(question, [0.0, 0.0, 0.0]) == [0, 0, 1]
    assert labels_by_score(question, [0.5, 0.1, 0.2]) == [1, 0, 0]
