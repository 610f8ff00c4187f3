"""Data sets in the layouts that people have, and what is said of those that are broken."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankrt import InputError
from rankrt_finetune.evaluation.datasets import Files, read_dataset
from rankrt_finetune.evaluation.documents import Documents
from tests.finetune.evaluation.data import (
    DOCUMENTS,
    QRELS,
    QUERIES,
    dataset,
    lines,
    write_beir,
    write_flagembedding,
    write_run,
)


@pytest.mark.parametrize(("layout", "write"), [("beir", write_beir), ("flagembedding", write_flagembedding)])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_layout_is_read_whether_it_is_named_or_not(
    tmp_path: Path, layout: str, write: Callable[[Path], Path], is_named: bool
):
    folder = write(tmp_path / "data")
    with dataset(f"{layout}:{folder}" if is_named else folder) as found:
        assert (found.name, found.queries, found.qrels) == ("data", QUERIES, QRELS)
        assert found.first_stage == "BM25"
        assert set(found.candidates["q1"].ids) == {"d1", "d4", "d6"}, "only those that share a word"
        assert found.documents.text("d4") == "four one"
        assert found.share_found == 1


def test_a_packed_corpus_is_read(tmp_path: Path):
    folder = write_beir(tmp_path / "data")
    packed = folder / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
    (folder / "corpus.jsonl").unlink()
    with dataset(folder) as found:
        assert len(found.documents) == 6


def test_a_title_stands_before_the_text(tmp_path: Path):
    folder = write_beir(tmp_path / "data")
    lines(folder / "corpus.jsonl", [{"_id": name, "title": "A one", "text": text} for name, text in DOCUMENTS.items()])
    with dataset(folder) as found:
        assert found.documents.text("d5") == "A one zero"


def test_files_of_ms_marco_and_trec_are_read(tmp_path: Path):
    (tmp_path / "collection.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in DOCUMENTS.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in QUERIES.items()))
    (tmp_path / "qrels.txt").write_text("".join(f"{q} 0 {d} {g}\n" for q, of in QRELS.items() for d, g in of.items()))
    run = write_run(tmp_path / "run.trec", {"q1": ["d5", "d4"], "q2": ["d1"], "unjudged": ["d9"]})
    files = Files(
        name="marco",
        corpus=tmp_path / "collection.tsv",
        queries=tmp_path / "queries.tsv",
        qrels=tmp_path / "qrels.txt",
    )
    with Documents() as documents:
        found = read_dataset(files, documents, run=run)
        assert (found.first_stage, found.candidates["q1"].ids, found.candidates["q3"].ids) == (
            "first",
            ("d5", "d4"),
            (),
        )
        assert list(documents) == ["d1", "d4", "d5"], "texts of candidates only are kept"
        assert found.notes == ["1 of 3 queries have no candidates; each counts as 0."]


def test_a_run_is_cut_to_its_best(tmp_path: Path):
    run = write_run(tmp_path / "run.trec", {query: ["d1", "d2", "d3"] for query in QUERIES})
    with dataset(write_beir(tmp_path / "data"), run=run, top_k=2) as found:
        assert found.candidates["q2"].ids == ("d1", "d2")
        assert found.n_pairs == 6


def test_a_query_of_beir_is_not_its_own_candidate(tmp_path: Path):
    """As in ArguAna, whose queries are documents of its corpus."""
    folder = write_beir(tmp_path / "data", {**DOCUMENTS, "q1": "one"})
    run = write_run(tmp_path / "run.trec", {query: ["q1", "d1"] for query in QUERIES})
    with dataset(folder) as found:
        assert "q1" not in found.candidates["q1"].ids
    with dataset(folder, run=run) as found:
        assert (found.candidates["q1"].ids, found.candidates["q2"].ids) == (("d1",), ("q1", "d1"))


def test_lines_with_their_own_candidates_are_ordered_by_bm25(tmp_path: Path):
    path = lines(
        tmp_path / "dev.jsonl",
        [
            {"query": "one", "pos": ["one two"], "neg": ["zero", "three", "zero"]},
            {"query": "four", "pos": ["two"], "neg": ["three"]},
            {"query": "two", "pos": ["two"]},
        ],
    )
    with dataset(f"jsonl:{path}") as found:
        texts = {
            query: [found.documents.text(name) for name in candidates.ids]
            for query, candidates in found.candidates.items()
        }
        assert texts == {"1": ["one two", "zero", "three"], "2": ["three", "two"], "3": ["two"]}
        assert list(found.qrels["2"].values()) == [0, 1], "where BM25 knows nothing, the wrong one is first"
        assert found.notes == ["1 of 3 queries have no neg, so any order of theirs is right."]


def break_corpus(folder: Path, *rows: Any) -> None:
    (folder / "corpus.jsonl").write_text("".join(f"{row}\n" for row in rows))


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: (f / "corpus.jsonl").unlink(),
        r"has no corpus.jsonl. The layout beir is corpus.jsonl, .*; there is qrels",
    ),
    (lambda f: (f / "qrels" / "test.tsv").rename(f / "qrels" / "dev.tsv"), "has no split 'test', only dev. Choose one"),
    (lambda f: break_corpus(f, '{"text": "one"}'), r"corpus.jsonl, line 1 has no id, only text; expected .*_id"),
    (lambda f: break_corpus(f, '{"_id": "d1"}'), r"line 1 \(d1\) has no text"),
    (lambda f: break_corpus(f, '{"_id": "d 1", "text": "one"}'), "line 1: the id 'd 1' has spaces"),
    (lambda f: break_corpus(f, "[]"), "corpus.jsonl has no documents|expected"),
    (lambda f: break_corpus(f, '{"_id": "d1"'), "line (1|2) is not JSON"),
    (lambda f: break_corpus(f), "corpus.jsonl has no documents"),
    (lambda f: break_corpus(f, *['{"_id": "d1", "text": "one"}'] * 2), "the id 'd1' is there twice"),
    (lambda f: break_corpus(f, '{"_id": "x", "text": "one"}'), "no document that .*test.tsv judges is in"),
    (
        lambda f: lines(f / "queries.jsonl", [{"_id": "q1", "text": "one"}]),
        "judges query 'q2', which is not in .*2 of 3",
    ),
    (
        lambda f: lines(f / "queries.jsonl", [{"_id": q, "text": " " if q == "q2" else "one"} for q in QUERIES]),
        "queries.jsonl, line 2: query 'q2' is judged, but its text is empty",
    ),
    (
        lambda f: lines(f / "queries.jsonl", [{"_id": "q1", "text": "one"}] * 2),
        "queries.jsonl, line 2: the id 'q1' is also that of line 1",
    ),
    (lambda f: (f / "queries.jsonl").write_text(""), "queries.jsonl has no queries"),
    (lambda f: (f / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n"), "test.tsv has no judgements"),
    (
        lambda f: (f / "qrels" / "test.tsv").write_text("query-id corpus-id score\nq1 d1 x\n"),
        "line 2: expected a query, a document and a whole",
    ),
    (
        lambda f: (f / "qrels" / "test.tsv").write_text("q1 d1 1\nq1 d1 2\n"),
        "line 2: document 'd1' of query 'q1' has another",
    ),
    (lambda f: (f / "qrels" / "test.tsv").write_text('{"qid": "q1"}\n'), "line 1 has only qid; expected"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_data_set_says_what_is_wrong_and_where(tmp_path: Path, change: Callable[[Path], object], message: str):
    folder = write_beir(tmp_path / "data")
    change(folder)
    with pytest.raises(InputError, match=message), dataset(f"beir:{folder}"):
        pass


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("", "is an empty run"),
        ("q1 Q0 d1 1 2.0\n", "line 1: expected a run's six columns"),
        ("q1 Q0 d1 1 nan x\n", "line 1: expected a run's six columns"),
        ("q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n", "line 2: document 'd1' is there twice for query 'q1'"),
        ("q9 Q0 d1 1 2 x\n", "has no judged query: it ranks for 'q9', judged is 'q1'"),
        ("q1 Q0 d9 1 2 x\nq1 Q0 d1 1 2 x\n", "names document 'd9', which is not in .*1 of 2"),
    ],
)
def test_a_broken_run_says_what_is_wrong_and_where(tmp_path: Path, run: str, message: str):
    (tmp_path / "run.trec").write_text(run)
    with (
        pytest.raises(InputError, match=message),
        dataset(write_beir(tmp_path / "data"), run=tmp_path / "run.trec"),
    ):
        pass


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("beir:nowhere", "nowhere does not exist. Expected beir:FOLDER, flagembedding:FOLDER or jsonl:FILE"),
        ("nowhere", "nowhere does not exist"),
        ("jsonl:data", "data is a folder, expected a file of lines"),
        ("flagembedding:data", "data has no test_queries.jsonl. The layout flagembedding is .*; there is corpus.jsonl"),
        ("beir:file.jsonl", "file.jsonl has no corpus.jsonl.*; there is not a folder"),
        ("jsonl:file.jsonl", "file.jsonl, line 1"),
    ],
)
def test_another_layout_than_it_says_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
):
    write_beir(tmp_path / "data")
    lines(tmp_path / "file.jsonl", [{"_id": "d1", "text": "one"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message), dataset(source):
        pass


def test_candidates_of_lines_cannot_come_from_elsewhere(tmp_path: Path):
    path = lines(tmp_path / "dev.jsonl", [{"query": "one", "pos": ["one"], "neg": ["two"]}])
    with pytest.raises(InputError, match="--top-k is for a corpus"), dataset(path, top_k=5):
        pass


def test_judged_documents_that_are_missing_are_noted(tmp_path: Path):
    folder = write_beir(tmp_path / "data", qrels={**QRELS, "q1": {"d1": 1, "d77": 1}})
    with dataset(folder) as found:
        assert found.notes == ["1 of 6 judged documents are not in the corpus, as 'd77'; no ranking can find them."]


def test_the_digest_changes_with_all_that_scores_depend_on(tmp_path: Path):
    def digest(name: str, **changes: Any) -> str:
        with dataset(write_beir(tmp_path / name, **changes)) as found:
            return found.digest

    same = {digest("a"), digest("b"), digest("c", qrels={**QRELS, "q1": {"d4": 1}})}
    assert len(same) == 1, "judgements do not change scores"
    others = {digest("d", documents={**DOCUMENTS, "d1": "one one"}), digest("e", queries={**QUERIES, "q1": "one one"})}
    assert len(same | others) == 3


def test_chinese_is_found_without_spaces(tmp_path: Path):
    folder = write_beir(
        tmp_path / "data",
        {"d1": "大熊猫住在中国", "d2": "汽车很快", "d3": "one"},
        {"q1": "熊猫在哪里"},
        {"q1": {"d1": 1}},
    )
    with dataset(folder) as found:
        assert found.candidates["q1"].ids == ("d1",)
        assert json.dumps(found.notes) == "[]"
