"""Data sets as people have them, as one thing: judged queries, each with candidates, and the documents' texts.

    beir:FOLDER           corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv
    flagembedding:FOLDER  corpus.jsonl, SPLIT_queries.jsonl and SPLIT_qrels.jsonl
    jsonl:FILE            lines of {"query", "pos", "neg"}, and the other layouts that `rankrt finetune` reads

Candidates come from a TREC run, from the lines of a JSONL, or from BM25 over the corpus.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from rankrt.errors import InputError
from rankrt_finetune.data.examples import read_examples
from rankrt_finetune.evaluation.bm25 import Bm25
from rankrt_finetune.evaluation.documents import Documents
from rankrt_finetune.evaluation.records import Candidates, Text, read_corpus, read_qrels, read_queries, read_run

Layout: TypeAlias = Literal["beir", "flagembedding", "jsonl"]
DEFAULT_TOP_K = 100
# Called with the number of documents that were read.
OnRead: TypeAlias = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Judged queries with their candidates.

    name         for people
    queries      the texts of the judged queries by their ids
    qrels        the grade of each judged document, by query and document; every query has some
    candidates   the documents to rank, by query, in the first stage's order, which equal scores keep
    first_stage  the name of what made that order
    documents    the texts of all candidates
    notes        sentences on what is unusual about the data
    """

    name: str
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, Candidates]
    first_stage: str
    documents: Documents
    notes: Sequence[str] = ()

    @property
    def n_pairs(self) -> int:
        """How many pairs of a query and a candidate there are."""
        return sum(len(found.ids) for found in self.candidates.values())

    @property
    def share_found(self) -> float:
        """The share of the relevant documents that are candidates: no ranking's recall can be higher."""
        relevant = [(query, doc) for query, grades in self.qrels.items() for doc, grade in grades.items() if grade > 0]
        candidates = {query: set(found.ids) for query, found in self.candidates.items()}
        return sum(doc in candidates[query] for query, doc in relevant) / max(1, len(relevant))

    @property
    def digest(self) -> str:
        """The SHA-256 of all that scores depend on: queries, candidates and their texts."""
        found = hashlib.sha256(self.documents.digest.encode())
        for query, text in self.queries.items():
            found.update("\0".join((query, text, *self.candidates[query].ids, "")).encode())
        return found.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The three files of a data set. With `drops_itself` a query's own document is not a candidate, as in BEIR."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path
    drops_itself: bool = False


def read_dataset(
    source: str | Files,
    documents: Documents,
    *,
    split: str = "test",
    run: Path | None = None,
    top_k: int | None = None,
    on_read: OnRead = lambda n_documents: None,
) -> Dataset:
    """Read a data set. The texts of its candidates go to `documents`, which has to be open as long as it is used.

    source   LAYOUT:PATH, a path whose layout shows, or three files
    split    which queries, where a layout has several parts
    run      a TREC run with the candidates; by default a JSONL has its own, and BM25 finds those of the others
    top_k    the most candidates of a query; by default 100 of BM25's and all of a run's

    Raises InputError, which says what was expected and what is there.
    """
    files = locate(source, split) if isinstance(source, str) else source
    if isinstance(files, Files):
        return _from_files(files, documents, run=run, top_k=top_k, on_read=on_read)
    if run is not None or top_k is not None:
        given = "--top-k" if run is None else "--run"
        raise InputError(f"{given} is for a corpus with judgements; in {files} each line has its own candidates")
    return _from_examples(files, documents, on_read)


def locate(source: str, split: str) -> Files | Path:
    """Return the files of a data set, or the JSONL that it is. Raises InputError if something is not there."""
    layout, colon, name = source.partition(":")
    if not colon or layout not in get_args(Layout):
        layout, name = "", source
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            f"--data {source}: {path} does not exist. Expected beir:FOLDER, flagembedding:FOLDER or jsonl:FILE"
        )
    if path.is_file() and layout in ("", "jsonl"):
        return path
    if path.is_dir() and not layout:
        layout = "flagembedding" if next(path.glob("*_qrels.jsonl*"), None) else "beir"
    if layout == "jsonl":
        raise InputError(f"--data {source}: {path} is a folder, expected a file of lines")
    return _beir(path, split) if layout == "beir" else _flagembedding(path, split)


def _beir(folder: Path, split: str) -> Files:
    return Files(
        name=folder.resolve().name,
        corpus=_there(folder, "beir", "corpus.jsonl"),
        queries=_there(folder, "beir", "queries.jsonl"),
        qrels=_part(folder, "beir", "qrels/{}.tsv", split),
        drops_itself=True,
    )


def _flagembedding(folder: Path, split: str) -> Files:
    return Files(
        name=folder.resolve().name,
        corpus=_there(folder, "flagembedding", "corpus.jsonl"),
        queries=_part(folder, "flagembedding", "{}_queries.jsonl", split),
        qrels=_part(folder, "flagembedding", "{}_qrels.jsonl", split),
    )


_EXPECTED = {
    "beir": "corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv",
    "flagembedding": "corpus.jsonl, SPLIT_queries.jsonl and SPLIT_qrels.jsonl",
}


def _there(folder: Path, layout: str, name: str) -> Path:
    """Return a file, packed with gzip or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    has = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["not a folder"]
    raise InputError(
        f"{folder} has no {name}. The layout {layout} is {_EXPECTED[layout]}; there is {', '.join(has) or 'nothing'}"
    )


def _part(folder: Path, layout: str, pattern: str, split: str) -> Path:
    """Return the file of a split. Raises InputError, which names the splits that there are."""
    there = {path for packed in ("", ".gz") for path in folder.glob(pattern.format("*") + packed)}
    before = len(Path(pattern.partition("{")[0] + "x").name) - 1
    after = pattern.partition("}")[2]
    splits = sorted(path.name.removesuffix(".gz")[before : -len(after)] for path in there)
    if splits and split not in splits:
        raise InputError(f"{folder} has no split {split!r}, only {', '.join(splits)}. Choose one with --split")
    return _there(folder, layout, pattern.format(split))


def _from_files(files: Files, documents: Documents, *, run: Path | None, top_k: int | None, on_read: OnRead) -> Dataset:
    qrels, texts = read_qrels(files.qrels), read_queries(files.queries)
    if unknown := [query for query in qrels if query not in texts]:
        raise InputError(
            f"{files.qrels} judges query {unknown[0]!r}, which is not in {files.queries} ({len(unknown)} of"
            f" {len(qrels)} are missing). Are these files of one data set?"
        )
    queries = {name: _not_empty(text) for name, text in texts.items() if name in qrels}
    if run is not None:
        first_stage, found = _of_run(run, queries, top_k)
    else:
        first_stage = Bm25.name
        index = Bm25(_counted(files.corpus, on_read))
        found = {
            name: index.search(text, top_k or DEFAULT_TOP_K, without=name if files.drops_itself else None)
            for name, text in queries.items()
        }
    if files.drops_itself:
        found = {name: _without(name, candidates) for name, candidates in found.items()}
    notes = _read_documents(files, documents, qrels, found, run, on_read)
    if without := sum(not candidates.ids for candidates in found.values()):
        notes.append(f"{without} of {len(queries)} queries have no candidates; each counts as 0.")
    return Dataset(
        name=files.name,
        queries=queries,
        qrels={name: qrels[name] for name in queries},
        candidates=found,
        first_stage=first_stage,
        documents=documents,
        notes=notes,
    )


def _not_empty(query: Text) -> str:
    if not query.text.strip():
        raise InputError(f"{query.place}: query {query.id!r} is judged, but its text is empty")
    return query.text


def _of_run(run: Path, queries: Mapping[str, str], top_k: int | None) -> tuple[str, dict[str, Candidates]]:
    tag, of_run = read_run(run)
    all_of = {name: of_run.get(name, Candidates()) for name in queries}
    found = {name: Candidates(ids=one.ids[:top_k], scores=one.scores[:top_k]) for name, one in all_of.items()}
    if not any(candidates.ids for candidates in found.values()):
        raise InputError(
            f"{run} has no judged query: it ranks for {next(iter(of_run))!r}, judged is {next(iter(queries))!r}. Are"
            " they of one data set?"
        )
    return tag, found


def _without(name: str, candidates: Candidates) -> Candidates:
    kept = [i for i, found in enumerate(candidates.ids) if found != name]
    return Candidates(ids=tuple(candidates.ids[i] for i in kept), scores=tuple(candidates.scores[i] for i in kept))


def _counted(corpus: Path, on_read: OnRead) -> Iterator[tuple[str, str]]:
    is_empty = True
    for document in read_corpus(corpus):
        is_empty = False
        on_read(1)
        yield document.id, document.text
    if is_empty:
        raise InputError(f"{corpus} has no documents")


def _read_documents(
    files: Files,
    documents: Documents,
    qrels: Mapping[str, Mapping[str, int]],
    found: Mapping[str, Candidates],
    run: Path | None,
    on_read: OnRead,
) -> list[str]:
    """Keep the texts of all candidates; return notes on documents that are judged and not there."""
    needed = {name for candidates in found.values() for name in candidates.ids}
    judged = {name for grades in qrels.values() for name in grades}
    missing = set(judged)
    for name, text in _counted(files.corpus, on_read):
        missing.discard(name)
        if name in needed:
            if name in documents:
                raise InputError(f"{files.corpus}: the id {name!r} is there twice; every document needs its own")
            documents.add(name, text)
    if unknown := sorted(needed.difference(documents)):
        raise InputError(
            f"{run} names document {unknown[0]!r}, which is not in {files.corpus} ({len(unknown)} of {len(needed)} are"
            " missing). Are they of one data set?"
        )
    if len(missing) == len(judged):
        raise InputError(
            f"no document that {files.qrels} judges is in {files.corpus}, as {min(missing)!r}. Are these files of one"
            " data set?"
        )
    if missing:
        return [
            f"{len(missing)} of {len(judged)} judged documents are not in the corpus, as {min(missing)!r}; no ranking"
            " can find them."
        ]
    return []


def _from_examples(path: Path, documents: Documents, on_read: OnRead) -> Dataset:
    """Read lines with their own candidates. BM25 orders these; of equals the wrong one is first."""
    queries, qrels, given, n_easy = dict[str, str](), dict[str, dict[str, int]](), dict[str, tuple[str, ...]](), 0
    for example in read_examples(path):
        name = str(example.place.number)
        wrong, right = ([_added(passage, documents) for passage in of] for of in (example.neg, example.pos))
        queries[name] = example.query
        qrels[name] = dict.fromkeys(wrong, 0) | dict.fromkeys(right, 1)
        given[name] = tuple(dict.fromkeys(wrong + right))
        n_easy += not wrong
        on_read(len(given[name]))
    index = Bm25((name, documents.text(name)) for name in documents)
    notes = [f"{n_easy} of {len(queries)} queries have no neg, so any order of theirs is right."] if n_easy else []
    return Dataset(
        name=path.name.partition(".")[0],
        queries=queries,
        qrels=qrels,
        candidates={name: index.order(query, given[name]) for name, query in queries.items()},
        first_stage=Bm25.name,
        documents=documents,
        notes=notes,
    )


def _added(passage: str, documents: Documents) -> str:
    """Return the id of a passage, which is a digest of its text, and keep the text."""
    name = hashlib.blake2b(passage.encode(), digest_size=8).hexdigest()
    if name not in documents:
        documents.add(name, passage)
    return name
