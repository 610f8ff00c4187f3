"""Systems side by side: their order, ties, refined and compared rows, and what is kept when one is interrupted."""

import tracemalloc
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rankrt import DeviceError, InputError, Reranker, ScoreError
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from rankrt_finetune.evaluation.evaluation import evaluate
from rankrt_finetune.evaluation.kept import Kept, alone_in
from rankrt_finetune.evaluation.measures import Measures
from rankrt_finetune.evaluation.rankings import Asked, Ranked
from tests.finetune.evaluation.data import (
    DOCUMENTS,
    QUERIES,
    dataset,
    evaluated,
    no_bar,
    systems,
    write_beir,
    write_run,
)
from tests.support import POINTS, VERIFICATION, tiny_artifact

ALL = {query: list(DOCUMENTS) for query in QUERIES}
# "two" is worth more than it should be, so d3 overtakes.
COARSE = np.where(POINTS == 2, 2.75, POINTS).astype(np.float32)


@pytest.fixture
def two(tmp_path: Path) -> Artifact:
    """An artifact in two precisions, whose scores differ by up to 3 points."""
    return tiny_artifact(
        tmp_path / "two",
        precisions=("fp32", "fp16"),
        points={"fp16": COARSE},
        verification=msgspec.structs.replace(VERIFICATION, max_difference=3.0),
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "all.trec", ALL)


def order(found: Any, row: int, query: str) -> list[str]:
    return [list(DOCUMENTS)[i] for i in found.rows[row].rankings[query].order]


def test_rows_are_the_order_of_rankrt_itself(two: Artifact, source: Path, run: Path):
    found = evaluated(two, source, run=run, precisions=["fp32", "fp16"])
    assert [row.name for row in found.rows] == ["two fp32", "two fp16", "first"]
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for i, precision in enumerate(precisions):
        with Reranker.load(two.folder, precision=precision) as reranker:
            for query, text in QUERIES.items():
                ranking = reranker.rank(text, list(DOCUMENTS.values()))
                scores = reranker.score([(text, document) for document in DOCUMENTS.values()])
                assert order(found, i, query) == [list(DOCUMENTS)[hit.index] for hit in ranking]
                assert found.rows[i].rankings[query].scores.tobytes() == scores.tobytes()


def test_equal_scores_keep_the_order_of_the_first_stage(artifact: Artifact, source: Path, tmp_path: Path):
    """d1 and d2 score the same; which of them comes first decides the measure."""
    values = {}
    for first in (["d1", "d2"], ["d2", "d1"]):
        run = write_run(tmp_path / "tied.trec", dict.fromkeys(QUERIES, first))
        values[first[0]] = evaluated(artifact, source, run=run, metrics=["P@1"]).rows[0].values[:, 0].tolist()
    assert values == {"d1": [1, 0, 0], "d2": [0, 0, 1]}


def test_a_variant_is_compared_with_the_first_of_the_same_weights(two: Artifact, source: Path, run: Path):
    first, second, stage = evaluated(two, source, run=run, precisions=["fp32", "fp16"]).rows
    assert (first.compared_to, stage.compared_to, second.compared_to) == (None, None, "two fp32")
    assert second.likeness is not None
    assert second.likeness.max_drift == 2.25, "two twos in d3 and one in q2"
    assert first.differences is None and stage.differences is not None


def test_a_refined_row_has_the_best_of_the_exact_one(two: Artifact, source: Path, run: Path):
    found = evaluated(two, source, run=run, precisions=["fp32", "fp16"], refine="fp32", top_n=2)
    assert [row.name for row in found.rows] == ["two fp32", "two fp16", "two fp16, refined in fp32", "first"]
    for query in QUERIES:
        best, rest = order(found, 2, query)[:2], order(found, 2, query)[2:]
        assert best == order(found, 0, query)[:2]
        assert rest == [name for name in DOCUMENTS if name not in best], "the rest keep the first stage's order"
    assert order(found, 1, "q2")[:2] != order(found, 0, "q2")[:2]
    assert found.rows[2].likeness is not None and found.rows[2].likeness.max_drift == 0


def test_one_query_has_no_test(artifact: Artifact, tmp_path: Path):
    source = write_beir(tmp_path / "one", queries={"q1": "one"}, qrels={"q1": {"d4": 1}})
    found = evaluated(artifact, source)
    assert not found.can_be_tested
    assert found.rows[1].differences is not None and found.rows[1].differences[0].p is None


def test_queries_without_candidates_are_ranked_as_nothing(artifact: Artifact, source: Path, tmp_path: Path):
    for candidates in ({"q2": ["d3"]}, {"q1": ["d4"]}, {"q3": ["d2", "d5"]}):
        run = write_run(tmp_path / "some.trec", candidates)
        values = evaluated(artifact, source, run=run, metrics=["RR"]).rows[0].values[:, 0].tolist()
        assert values == [float(query in candidates) for query in QUERIES]


def test_the_first_stage_can_be_measured_alone(source: Path, tmp_path: Path):
    with dataset(source) as data:
        found = evaluate(data, [], Measures.of(["R@10"]), folder=tmp_path / "scores", bar=no_bar)
    assert [(row.name, row.differences, row.pairs_per_s) for row in found.rows] == [("BM25", None, None)]


@dataclass
class Counting:
    """Ranks by the length of a document, remembers what it was asked, and is interrupted at one query."""

    asked: list[str] = field(default_factory=list)
    interrupted_at: str | None = None
    name: str = "counting"
    weights: str = "none"
    block_pairs: int = 1
    identity: dict[str, str] = field(default_factory=lambda: {"version": "1"})
    n_loaded: int = 0

    @contextmanager
    def open(self):
        self.n_loaded += 1
        yield self.rank

    def rank(self, asked: Sequence[Asked]) -> list[Ranked]:
        if any(one.query == self.interrupted_at for one in asked):
            raise KeyboardInterrupt
        self.asked += [one.query for one in asked]
        scores = [np.array([len(document) for document in one.documents], np.float32) for one in asked]
        return [Ranked(order=np.argsort(-each, kind="stable"), scores=each, n_truncated=1) for each in scores]


def test_an_interrupted_evaluation_continues_where_it_was(source: Path, run: Path, tmp_path: Path):
    measures, folder = Measures.of(["nDCG@10"]), tmp_path / "scores"
    with dataset(source, run=run) as data:
        with pytest.raises(KeyboardInterrupt):
            evaluate(data, [Counting(interrupted_at="two")], measures, folder=folder, bar=no_bar)
        (kept,) = folder.iterdir()
        with kept.open("ab") as file:
            file.write(b'{"query":"q2","or')  # as a process leaves it that is killed while it writes
        second, whole = Counting(), Counting()
        continued = evaluate(data, [second], measures, folder=folder, bar=no_bar)
        unbroken = evaluate(data, [whole], measures, folder=tmp_path / "other", bar=no_bar)
        assert second.asked == ["two", "three zero"] and whole.asked == list(QUERIES.values())
        assert continued.rows[0].values.tolist() == unbroken.rows[0].values.tolist()
        assert continued.rows[0].n_truncated == 3
        third = Counting()
        evaluate(data, [third], measures, folder=folder, bar=no_bar)
        assert third.n_loaded == 0, "nothing is left to rank, so no model is loaded"


def test_kept_scores_come_back_bit_by_bit(source: Path, run: Path, tmp_path: Path):
    scores = np.array([1 / 3, np.nan, -1e-38, 3e38, 0.1, -0.0], np.float32)
    ranked = Ranked(order=np.arange(6), scores=scores, n_truncated=2)
    Kept(tmp_path, Counting(), "data").add(["q1"], [ranked], 1.5)
    again = Kept(tmp_path, Counting(), "data")
    assert again.rankings["q1"].scores.tobytes() == scores.tobytes()
    assert (again.rankings["q1"].order.tolist(), again.seconds) == (list(range(6)), 1.5)


def test_scores_of_other_data_or_of_another_system_are_not_taken(tmp_path: Path):
    kept = [
        Kept(tmp_path, Counting(), "data"),
        Kept(tmp_path, Counting(), "other data"),
        Kept(tmp_path, Counting(identity={"version": "2"}), "data"),
    ]
    assert len({each.path for each in kept}) == 3


def test_a_damaged_line_is_named(tmp_path: Path):
    kept = Kept(tmp_path, Counting(), "data")
    kept.path.write_text("{}\n")
    with pytest.raises(InputError, match=r"counting-.*jsonl is damaged .* Remove it"):
        Kept(tmp_path, Counting(), "data")


def test_two_evaluations_do_not_write_to_one_folder(tmp_path: Path):
    with (
        alone_in(tmp_path / "out"),
        pytest.raises(InputError, match=r"another evaluation writes to .*out. Wait for it"),
        alone_in(tmp_path / "out"),
    ):
        pass


def test_a_changed_artifact_is_scored_again(source: Path, tmp_path: Path):
    first, second = tiny_artifact(tmp_path / "a" / "tiny"), tiny_artifact(tmp_path / "b" / "tiny", max_length=8)
    for artifact, n_files in ((first, 1), (first, 1), (second, 2)):
        evaluated(artifact, source, folder=tmp_path / "scores")
        assert len(list((tmp_path / "scores").iterdir())) == n_files


def test_a_score_that_is_not_a_number_names_query_and_document(artifact: Artifact, tmp_path: Path):
    source = write_beir(tmp_path / "nan", {"d1": "one nan", "d2": "one"}, {"q1": "one"}, {"q1": {"d1": 1}})
    with pytest.raises(ScoreError, match="answered nan for query 'one' with document 'one nan'"):
        evaluated(artifact, source)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"precisions": ["int8"]}, "has no int8 for cpu; it has cpu-fp32"),
        ({"precisions": ["fp32"], "refine": "int8"}, "has no int8 for cpu"),
        ({"precisions": ["fp32"], "refine": "fp32"}, "refine='fp32' adds no row"),
        ({"progressive": True}, "progressive needs a layerwise model, and none of these is one"),
        ({"cutoff_layers": [4]}, "cutoff_layers are for layerwise models"),
    ],
)
def test_what_no_model_can_do_is_refused_before_anything_is_scored(
    artifact: Artifact, wanted: dict[str, Any], message: str
):
    with pytest.raises((InputError, DeviceError), match=message):
        systems(artifact, **wanted)


def test_models_with_the_same_last_name_are_called_by_their_whole_name(tmp_path: Path):
    a, b = tiny_artifact(tmp_path / "a" / "tiny"), tiny_artifact(tmp_path / "b" / "tiny")
    assert [system.name for system in systems(a, b)] == [f"{a.folder} fp32", f"{b.folder} fp32"]


def test_memory_holds_scores_and_ids_but_no_texts(tmp_path: Path):
    """Texts of 20 MB: ids, orders and scores are some 350 bytes a pair, the resamples 8 MB whatever the data."""
    n_queries, n_each = 100, 100
    documents = {f"d{i}": f"{'one ' * 500}{i}" for i in range(n_queries * n_each)}  # 2 kB each
    queries = {f"q{i}": "one" for i in range(n_queries)}
    source = write_beir(tmp_path / "large", documents, queries, {query: {f"d{query[1:]}": 1} for query in queries})
    names = list(documents)
    del documents
    run = write_run(tmp_path / "run.trec", {f"q{i}": names[i * n_each : (i + 1) * n_each] for i in range(n_queries)})
    tracemalloc.start()
    try:
        with dataset(source, run=run) as data:
            assert data.n_pairs == 10_000
            evaluate(data, [Counting(block_pairs=256)], Measures.of(["nDCG@10"]), folder=tmp_path / "s", bar=no_bar)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15e6
