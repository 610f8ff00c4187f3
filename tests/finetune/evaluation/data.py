"""A small retrieval data set in the layouts that people have, and how it is evaluated in a test."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankrt.artifact.manifest import Artifact
from rankrt.options import LoadOptions
from rankrt_finetune.evaluation.artifacts import Wanted
from rankrt_finetune.evaluation.datasets import Dataset, read_dataset
from rankrt_finetune.evaluation.documents import Documents
from rankrt_finetune.evaluation.evaluation import Evaluation, evaluate
from rankrt_finetune.evaluation.measures import Measures
from rankrt_finetune.evaluation.rankings import System
from rankrt_finetune.evaluation.systems import systems_of

# A document's score is the sum of its words' points and the query's.
DOCUMENTS = {
    "d1": "one one one",
    "d2": "three zero",
    "d3": "two two",
    "d4": "four one",
    "d5": "zero",
    "d6": "one two one",
}
QUERIES = {"q1": "one", "q2": "two", "q3": "three zero"}
QRELS = {"q1": {"d4": 2, "d1": 1, "d5": 0}, "q2": {"d3": 1, "d6": 1}, "q3": {"d2": 1, "d5": 1}}


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_beir(
    folder: Path,
    documents: Mapping[str, str] = DOCUMENTS,
    queries: Mapping[str, str] = QUERIES,
    qrels: Mapping[str, Mapping[str, int]] = QRELS,
) -> Path:
    lines(folder / "corpus.jsonl", [{"_id": name, "title": "", "text": text} for name, text in documents.items()])
    lines(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    grades = [f"{query}\t{doc}\t{grade}\n" for query, of in qrels.items() for doc, grade in of.items()]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(grades))
    return folder


def write_flagembedding(folder: Path) -> Path:
    lines(folder / "corpus.jsonl", [{"id": name, "text": text} for name, text in DOCUMENTS.items()])
    lines(folder / "test_queries.jsonl", [{"id": name, "text": text} for name, text in QUERIES.items()])
    grades = [{"qid": q, "docid": d, "relevance": grade} for q, of in QRELS.items() for d, grade in of.items()]
    lines(folder / "test_qrels.jsonl", grades)
    return folder


def write_run(path: Path, candidates: Mapping[str, Sequence[str]], scores: Sequence[float] | None = None) -> Path:
    """Write candidates as a TREC run, by default with scores that fall."""
    path.write_text(
        "".join(
            f"{query} Q0 {doc} {i} {scores[i] if scores else -i} first\n"
            for query, docs in candidates.items()
            for i, doc in enumerate(docs)
        )
    )
    return path


@contextmanager
def dataset(source: Path | str, **options: Any) -> Iterator[Dataset]:
    with Documents() as documents:
        yield read_dataset(str(source), documents, **options)


def systems(*artifacts: Artifact, rules: Mapping[str, Any] | None = None, **wanted: Any) -> list[System]:
    return systems_of([str(artifact.folder) for artifact in artifacts], Wanted(**wanted), LoadOptions(), rules or {})


def evaluated(
    artifact: Artifact,
    source: Path | str,
    *,
    run: Path | None = None,
    metrics: Sequence[str] = ("nDCG@10",),
    folder: Path | None = None,
    **wanted: Any,
) -> Evaluation:
    """Evaluate an artifact, with its rankings in a folder or nowhere. The documents' texts are gone afterwards."""
    with dataset(source, run=run) as data, TemporaryDirectory() as nowhere:
        chosen = systems(artifact, **wanted)
        return evaluate(data, chosen, Measures.of(metrics), folder=folder or Path(nowhere), bar=no_bar)


@contextmanager
def no_bar(title: str, n_pairs: int) -> Iterator[Any]:
    yield lambda n_done: None
