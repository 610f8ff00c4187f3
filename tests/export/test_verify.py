"""The figures of a verification."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the export extra")

from rankrt_export.pipeline import Options, export
from rankrt_export.text.ranks import overlap, tau
from rankrt_export.text.texts import parse, sample
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.verify import EXAMPLE_LENGTH, Reference, compare, example_pairs, limits_for

pytestmark = pytest.mark.export
CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [([1, 2, 3], [10, 20, 30], 1.0), ([3, 2, 1], [1, 2, 3], -1.0), ([1, 3, 2], [1, 2, 3], 1 / 3), ([1], [9], 1.0)],
)
def test_tau_counts_pairs_in_the_same_order(ours: list[float], theirs: list[float], expected: float):
    assert tau(np.array(ours, np.float32), np.array(theirs, np.float32)) == pytest.approx(expected)


def test_scores_that_are_all_equal_say_nothing():
    assert tau(np.zeros(3, np.float32), np.arange(3, dtype=np.float32)) == 1.0


def test_overlap_is_the_share_of_the_best_in_common():
    ours, theirs = np.array([5, 4, 3, 2, 1], np.float32), np.array([5, 4, 1, 2, 3], np.float32)
    assert overlap(ours, theirs, 3) == pytest.approx(2 / 3)
    assert overlap(ours[:2], theirs[:2], 3) == 1.0


def test_differences_and_orders_are_taken_query_by_query():
    texts = parse(b'{"query": "a", "pos": ["1", "2"]}\n{"query": "b", "pos": ["1", "2", "3"]}', "x")
    against = Reference(texts=texts, logits=np.array([0, 1, 0, 1, 2], np.float32), made_by="hand")
    found = compare(np.array([0, 1, 0, 2.5, 2], np.float32), against)
    assert (found.n_queries, found.n_pairs) == (2, 5)
    assert found.max_difference == 1.5
    assert found.mean_difference == pytest.approx(0.3)
    assert found.min_tau == pytest.approx(1 / 3)
    assert found.mean_tau == pytest.approx(2 / 3)


def test_own_limits_replace_those_of_lossy_precisions_only():
    assert limits_for("fp32", 5.0, 0.1) == limits_for("fp32", None, None)
    assert limits_for("fp16", 5.0, None).max_difference == 5.0
    assert limits_for("fp16", 5.0, None).min_tau == limits_for("fp16", None, None).min_tau


def test_examples_are_of_all_languages_and_lengths_and_none_is_cut(tmp_path: Path):
    rows = RowMaker.open(export(str(CHECKPOINT), tmp_path / "artifact", Options(is_verified=False)))
    pairs = example_pairs(sample(), rows, 24)
    lengths = rows.encode(pairs).lengths
    assert len(set(pairs)) == 24
    assert len({query for query, _ in pairs}) == 13  # one language each
    assert lengths.min() < 40
    assert (lengths > EXAMPLE_LENGTH / 2).sum() >= 3
    assert lengths.max() <= EXAMPLE_LENGTH


def test_few_texts_give_as_many_examples_as_there_are(tmp_path: Path):
    rows = RowMaker.open(export(str(CHECKPOINT), tmp_path / "artifact", Options(is_verified=False)))
    texts = parse(b'{"query": "a", "pos": ["1", "2"]}', "x")
    assert example_pairs(texts, rows, 24) == [("a", "1"), ("a", "1 2"), ("a", "2")]
