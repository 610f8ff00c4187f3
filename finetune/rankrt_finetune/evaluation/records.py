"""The files of retrieval data sets, line by line: corpora, queries, judgements and runs. Each error names the line.

A corpus and queries are JSON Lines, as BEIR and FlagEmbedding have them, or TSV with an id and a text, as MS MARCO has
them. Judgements are TREC's four columns, BEIR's three, or FlagEmbedding's JSON Lines. A run is TREC's.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.cli.inputs import Place, format_of, lines, open_input, records
from rankrt.errors import InputError

_IDS = ("_id", "id", "docid", "doc_id", "docno", "pid", "qid", "query_id")
# The first word of a heading, which BEIR's judgements have.
_HEADINGS = ("query-id", "query_id", "qid", "query")
_CORPUS = '{"_id": str, "title": str, "text": str}'
_QUERIES = '{"_id": str, "text": str}'
_JUDGEMENT = '{"qid": str, "docid": str, "relevance": int}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A document or a query: its id, its text and where it stands."""

    id: str
    text: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What a first stage found for a query: ids of documents, best first, and its scores."""

    ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


def read_corpus(path: Path) -> Iterator[Text]:
    """Yield the documents of a corpus as it is read, each with its title before its text, as BEIR and FlagEmbedding do.

    Raises InputError, with the line, for a document without an id or a text.
    """
    return _texts(path, _CORPUS, _titled)


def read_queries(path: Path) -> dict[str, Text]:
    """Return queries by their ids. Raises InputError, with the line, also for an id that is there twice."""
    found: dict[str, Text] = {}
    for query in _texts(path, _QUERIES, lambda content: content.get("text", content.get("query"))):
        if (first := found.setdefault(query.id, query)) is not query:
            raise InputError(f"{query.place}: the id {query.id!r} is also that of {first.place.short}")
    if not found:
        raise InputError(f"{path} has no queries; expected lines of {_QUERIES}")
    return found


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Return the grade of each judged document of each query. Raises InputError, with the line."""
    found: dict[str, dict[str, int]] = {}
    for place, line in _lines(path):
        is_json = line.startswith("{")
        cells = _cells_of_json(line, place) if is_json else line.split()
        if place.number == 1 and cells[0].lower() in _HEADINGS:
            continue
        if len(cells) not in (3, 4) or not (_is_number(cells[-1]) and float(cells[-1]).is_integer()):
            raise InputError(
                f"{place}: expected a query, a document and a whole number as its grade, got {line:.80}. Judgements are"
                f" TREC's four columns, BEIR's three, or {_JUDGEMENT}"
            )
        query, document, grade = cells[0], cells[-2], int(float(cells[-1]))
        if found.setdefault(query, {}).setdefault(document, grade) != grade:
            raise InputError(f"{place}: document {document!r} of query {query!r} has another grade above")
    if not found:
        raise InputError(f"{path} has no judgements")
    return found


def read_run(path: Path) -> tuple[str, dict[str, Candidates]]:
    """Return a TREC run: the name in its last column, and each query's documents.

    They are in trec_eval's order, by score, and of equal scores the greater id first, so that the run's own figures
    are trec_eval's. Raises InputError, with the line.
    """
    tag, found = "", dict[str, dict[str, float]]()
    for place, line in _lines(path):
        cells = line.split()
        if len(cells) != 6 or not _is_number(cells[4]):
            raise InputError(
                f"{place}: expected a run's six columns (query Q0 document rank score name), got {line:.80}"
            )
        query, document, tag = cells[0], cells[2], cells[5]
        of_query = found.setdefault(query, {})
        if document in of_query:
            raise InputError(f"{place}: document {document!r} is there twice for query {query!r}")
        of_query[document] = float(cells[4])
    if not found:
        raise InputError(f"{path} is an empty run")
    return tag, {query: _in_order(of_query) for query, of_query in found.items()}


def run_lines(query: str, ids: Sequence[str], scores: Sequence[float], tag: str) -> Iterator[str]:
    """Yield the lines of a TREC run for documents in their order.

    trec_eval orders a run by its scores, as 32-bit numbers, and ties by ids. So that it sees this order, a score that
    is not below the one before it is written as the next smaller number.
    """
    last = np.float32(np.inf)
    for rank, (document, score) in enumerate(zip(ids, scores, strict=True), 1):
        last = np.fmin(np.float32(score), np.nextafter(last, np.float32(-np.inf)))  # the latter if there is no score
        yield f"{query} Q0 {document} {rank} {last!s} {tag}"


def _texts(path: Path, expected: str, text_of: Callable[[Mapping[str, Any]], object]) -> Iterator[Text]:
    for place, content in _contents(path, expected):
        key = next((key for key in _IDS if content.get(key) not in (None, "")), None)
        if key is None:
            raise InputError(f"{place} has no id, only {', '.join(content) or 'nothing'}; expected {expected}")
        text, name = text_of(content), str(content[key])
        if not isinstance(text, str):
            raise InputError(f"{place} ({name}) has no text; expected {expected}")
        if name.split() != [name]:
            raise InputError(f"{place}: the id {name!r} has spaces, which judgements and runs cannot hold")
        yield Text(id=name, text=text, place=place)


def _contents(path: Path, expected: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    if format_of(str(path)) == "tsv":
        for place, line in _lines(path):
            name, tab, text = line.partition("\t")
            if not tab:
                raise InputError(f"{place} has no tab; expected an id, a tab and a text")
            if place.number > 1 or name not in _IDS:
                yield place, {"id": name, "text": text}
        return
    with open_input(str(path)) as file:
        for record in records(lines(file, str(path)), str(path), "jsonl"):
            if not isinstance(record.content, dict):
                raise InputError(f"{record.place}: expected {expected}, got {json.dumps(record.content):.80}")
            yield record.place, record.content


def _lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Yield the lines that are not blank, without their ends."""
    with open_input(str(path)) as file:
        for number, line in lines(file, str(path)):
            if line.strip():
                yield Place(file=str(path), unit="line", number=number), line.rstrip("\r\n")


def _titled(content: Mapping[str, Any]) -> object:
    title, text = content.get("title") or "", content.get("text", content.get("contents"))
    return f"{title} {text}".strip() if isinstance(text, str) else None


def _cells_of_json(line: str, place: Place) -> list[str]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    keys = (("qid", "query_id", "query-id"), ("docid", "doc_id", "corpus-id"), ("relevance", "score"))
    cells = [next((str(content[key]) for key in names if key in content), None) for names in keys]
    if None in cells:
        raise InputError(f"{place} has only {', '.join(content)}; expected {_JUDGEMENT}")
    return [cell for cell in cells if cell is not None]


def _in_order(scores: Mapping[str, float]) -> Candidates:
    by_id = sorted(scores, key=str.encode, reverse=True)  # C compares bytes
    ids = sorted(by_id, key=lambda name: -np.float32(scores[name]))  # in which trec_eval keeps them
    return Candidates(ids=tuple(ids), scores=tuple(scores[name] for name in ids))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
