"""Measures are those of ir-measures and pytrec_eval, of the order that is given, ties included."""

from collections.abc import Mapping
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from rankrt import InputError
from rankrt_finetune.evaluation.measures import DEFAULT, Measures
from rankrt_finetune.evaluation.records import read_run, run_lines
from tests.finetune.evaluation.data import write_run

# Of the tests of pytrec_eval: grades, the scores of a run, and the nDCG of q1.
PYTREC_QRELS = {"q1": {"d1": 0, "d2": 1, "d3": 0}, "q2": {"d2": 1, "d3": 1}}
PYTREC_CASES = [
    ({"d1": 1.0, "d2": 0.0, "d3": 1.5}, 0.5),
    ({"d1": 1.0, "d2": 2.0, "d3": 1.5}, 1.0),
    ({"d1": 4.0, "d2": 2.0, "d3": 1.5}, 0.6309297535714575),
]
# Of the tests of ir-measures for pytrec_eval: one run, judgements, a measure and its value for each query.
IR_RUN = {
    "0": {"D0": 0.8, "D2": 0.7, "D1": 0.3, "D3": 0.4, "D4": 0.1},
    "1": {"D1": 0.8, "D3": 0.7, "D4": 0.3, "D2": 0.4},
}
IR_FLAT = {"0": {"D0": 0, "D1": 1, "D2": 2, "D3": 2, "D4": 0}, "1": {"D0": 1, "D3": 2, "D5": 0}}
IR_BPREF = {"0": {"D0": 1, "D1": -1, "D2": 0, "D3": 2, "D4": 0}, "1": {"D0": 1, "D3": 2, "D4": -1, "D5": 0}}
IR_CASES = [
    (IR_FLAT, "Success@2", [1, 0], {"1": {"D1": 0.8, "D4": 0.7, "D3": 0.3, "D2": 0.4}}),
    (IR_FLAT, "SetP(rel=1)", [0.6, 0.25], {}),
    (IR_FLAT, "SetP(rel=2)", [0.4, 0.25], {}),
    (IR_BPREF, "AP", [0.8333, 0.125], {"1": {"D1": 0.8, "D4": 0.7, "D2": 0.4, "D3": 0.3}}),
]
NAMES = ["nDCG@10", "AP", "R@3", "P@2", "RR", "Success@1"]


def ordered(run: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Return documents in trec_eval's order: by score, and of equal scores the greater id first."""
    return {q: sorted(sorted(docs, reverse=True), key=lambda d: -docs[d]) for q, docs in run.items()}


def lines_of(run: Mapping[str, Mapping[str, float]]) -> str:
    return "".join(f"{q} Q0 {d} 0 {score!r} run\n" for q, docs in run.items() for d, score in docs.items())


@pytest.mark.parametrize(("scores", "expected"), PYTREC_CASES)
def test_ndcg_is_that_of_pytrec_eval_s_own_tests(scores: dict[str, float], expected: float):
    values = Measures.of(["nDCG"]).values(PYTREC_QRELS, ordered({"q1": scores}))
    assert values[:, 0].tolist() == pytest.approx([expected, 0])


@pytest.mark.parametrize(("qrels", "name", "expected", "other"), IR_CASES)
def test_measures_are_those_of_ir_measures_own_tests(
    qrels: dict[str, dict[str, int]], name: str, expected: list[float], other: dict[str, dict[str, float]]
):
    values = Measures.of([name]).values(qrels, ordered(IR_RUN | other))
    assert values[:, 0].tolist() == pytest.approx(expected, abs=1e-4)  # their tests give four digits


grades = st.dictionaries(st.sampled_from("abcdef"), st.integers(-1, 3), min_size=1)
# A few scores, so that ties are common, two of which only 64 bits can tell apart.
tied = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([2.0, 1.0, 1.0 + 1e-12, 0.5]), min_size=1)


@given(
    qrels=st.dictionaries(st.sampled_from("123"), grades, min_size=1),
    run=st.dictionaries(st.sampled_from("123"), tied, min_size=1),
)
def test_a_run_that_is_read_and_measured_equals_pytrec_eval_on_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
):
    path = tmp_path_factory.mktemp("run") / "first.trec"
    path.write_text(lines_of(run))
    _, found = read_run(path)
    with path.open() as file:
        theirs = pytrec_eval.RelevanceEvaluator(
            qrels, {"ndcg_cut_10", "map", "recall_3", "P_2", "recip_rank", "success_1"}
        ).evaluate(pytrec_eval.parse_run(file))
    expected = [
        [
            theirs.get(q, {}).get(name, 0.0)
            for name in ("ndcg_cut_10", "map", "recall_3", "P_2", "recip_rank", "success_1")
        ]
        for q in qrels
    ]
    ours = Measures.of(NAMES).values(qrels, {query: candidates.ids for query, candidates in found.items()})
    assert ours.tolist() == expected


@given(
    order=st.permutations("abcdefgh"),
    scores=st.lists(st.sampled_from([np.nan, 1.0, -1e30, 0.0]), min_size=8, max_size=8),
)
def test_a_run_that_is_written_keeps_its_order_for_trec_eval(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], scores: list[float]
):
    """Also with ties and with documents that got no score."""
    path = tmp_path_factory.mktemp("run") / "ours.trec"
    path.write_text("".join(f"{line}\n" for line in run_lines("q", order, scores, "ours")))
    assert read_run(path)[1]["q"].ids == tuple(order)
    qrels = {"q": {name: i % 3 for i, name in enumerate("abcdefgh")}}
    ours = Measures.of(NAMES).values(qrels, {"q": order})[0]
    with path.open() as file:
        run = list(ir_measures.read_trec_run(file.read()))
    theirs = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in NAMES], qrels, run)
    assert ours.tolist() == [theirs[ir_measures.parse_measure(name)] for name in NAMES]


def test_a_judged_query_without_a_ranking_counts_as_0(tmp_path: Path):
    _, found = read_run(write_run(tmp_path / "one.trec", {"1": ["a"]}))
    qrels = {"1": {"a": 1}, "2": {"a": 1}}
    values = Measures.of(["nDCG@10"]).values(qrels, {query: candidates.ids for query, candidates in found.items()})
    assert values.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("typed", "name"),
    [("mrr@10", "RR@10"), ("MAP", "AP"), ("recall@100", "R@100"), ("ndcg@5", "nDCG@5"), ("P(rel=2)@5", "P(rel=2)@5")],
)
def test_names_are_understood_as_people_write_them(typed: str, name: str):
    assert str(Measures.of([typed]).by_name[typed]) == name


@pytest.mark.parametrize("name", ["ndgc@10", "nDCG@x", "", "nDCG@10)", "__import__('os')", "./model"])
def test_what_is_not_a_measure_is_named(name: str):
    with pytest.raises(InputError, match="is not a measure of ir-measures"):
        Measures.of([name])


def test_the_deepest_rank_is_that_of_the_greatest_cutoff():
    assert Measures.of(["MAP"]).deepest == 10
    assert Measures.of([*DEFAULT, "R@50"]).deepest == 50
