"""How rankings and scores are written: a table for people, and JSON, JSON Lines, CSV and TREC runs for programs.

What stood beside a text in its file stands beside its score. Values in, lines out: knows no stream.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from rankrt.cli.inputs import Document, Query
from rankrt.errors import InputError
from rankrt.ranking import Hit, Ranking

RankingFormat: TypeAlias = Literal["text", "json", "jsonl", "csv", "trec"]
RANKING_FORMATS: tuple[RankingFormat, ...] = get_args(RankingFormat)
ScoreFormat: TypeAlias = Literal["jsonl", "csv"]
SCORE_FORMATS: tuple[ScoreFormat, ...] = get_args(ScoreFormat)

# The last column of a TREC run names what made it.
_TREC_TAG = "rankrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The ranking of a query's documents."""

    query: Query
    ranking: Ranking

    def document(self, hit: Hit) -> Document:
        """Return the document of a hit."""
        assert self.query.documents is not None
        return self.query.documents[hit.index]


class Table:
    """Rows of CSV under one header, which the first row needs to be known for."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    @property
    def header(self) -> str:
        """The names of the columns."""
        return self._line(self._columns)

    def row(self, values: Mapping[str, Any]) -> str:
        """Return a row; what is missing is empty. Raises InputError for a value that has no column."""
        if other := [name for name in values if name not in self._columns]:
            raise InputError(
                f"{other[0]!r} is not in every record, and CSV needs the same columns in all; choose --output-format"
                " jsonl"
            )
        return self._line([_cell(values.get(name)) for name in self._columns])

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(cells)  # what ends a line is quoted inside a cell
        return line.getvalue().removesuffix("\r\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How rankings are written. `names_queries` says whether hits tell their query, as they must if there are several.

    columns   of CSV
    """

    format: RankingFormat
    names_queries: bool
    columns: Sequence[str]

    @classmethod
    def of(cls, format: RankingFormat, queries: Sequence[Query], *, names_queries: bool, has_spans: bool) -> "Style":
        """Return the style for these queries' rankings. Raises InputError for an id that a TREC run cannot hold."""
        documents = [document for query in queries for document in query.documents or ()]
        if format == "trec":
            for query in queries:
                _check_trec_id(query.id, query.place)
            for document in documents:
                _check_trec_id(document.id, document.place)
        ours = [*(["query_id"] if names_queries else []), "rank", *_HIT_COLUMNS, *(["span"] if has_spans else [])]
        fields = dict.fromkeys(name for document in documents for name in document.fields)
        return cls(format=format, names_queries=names_queries, columns=list(beside(dict.fromkeys(ours), fields)))

    def lines(self, answers: Iterable[Answer]) -> Iterator[str]:
        """Yield the lines of answers, each as soon as its answer is there."""
        table = Table(self.columns)
        if self.format == "csv":
            yield table.header
        for answer in answers:
            match self.format:
                case "text":
                    yield from _as_text(answer, names_query=self.names_queries)
                case "json":
                    yield _as_json(_as_object(answer, names_query=self.names_queries))
                case "jsonl":
                    yield from map(_as_json, _hits(answer, names_query=self.names_queries))
                case "csv":
                    yield from map(table.row, _hits(answer, names_query=self.names_queries))
                case "trec":
                    yield from _as_trec(answer)


def score_lines(blocks: Iterable[Sequence[Mapping[str, Any]]], format: ScoreFormat) -> Iterator[str]:
    """Yield the lines of each block of scores as one text; the first row says which columns CSV has.

    Raises InputError at a row that CSV cannot hold, after the lines of those before it.
    """
    if format == "jsonl":
        yield from ("\n".join(map(_as_json, rows)) for rows in blocks)
        return
    table: Table | None = None
    for rows in blocks:
        lines, unfit = [], None
        if table is None:
            table = Table(list(rows[0]))
            lines.append(table.header)
        try:
            for row in rows:
                lines.append(table.row(row))
        except InputError as error:
            unfit = error
        if lines:
            yield "\n".join(lines)
        if unfit is not None:
            raise unfit


def beside(ours: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return our values with the fields of the input; one with the name of ours is called input_... ."""
    joined = dict(ours)
    for name, value in fields.items():
        while name in joined:
            name = f"input_{name}"
        joined[name] = value
    return joined


_HIT_COLUMNS = ("index", "score", "document", "truncated")


def _as_text(answer: Answer, *, names_query: bool) -> Iterator[str]:
    if names_query:
        yield f"# {answer.query.id}: {_printable(answer.query.text)}"
    for rank, hit in enumerate(answer.ranking, 1):
        mark = " [truncated]" if hit.truncated else ""
        place = answer.document(hit).place.short
        yield f"{rank:>3}  {hit.score:>9.4f}  {place:<10}  {_printable(hit.document)}{mark}"


def _as_object(answer: Answer, *, names_query: bool) -> dict[str, Any]:
    ranking = answer.ranking
    ours = {
        **({"query": answer.query.text} if names_query else {}),
        "results": [_with_fields(answer, hit) for hit in ranking],
        "score_kind": ranking.score_kind,
        "n_documents": ranking.n_documents,
        "n_tokens": ranking.n_tokens,
        "n_refined": ranking.n_refined,
        "n_saved_tokens": ranking.n_saved_tokens,
        **({"progress": asdict(ranking.progress)} if ranking.progress else {}),
        "query_truncated": ranking.query_truncated,
    }
    return beside(ours, answer.query.fields)


def _hits(answer: Answer, *, names_query: bool) -> Iterator[dict[str, Any]]:
    query = {"query_id": answer.query.id} if names_query else {}
    for rank, hit in enumerate(answer.ranking, 1):
        yield _with_fields(answer, hit, {**query, "rank": rank})


def _with_fields(answer: Answer, hit: Hit, first: Mapping[str, Any] | None = None) -> dict[str, Any]:
    document = answer.document(hit)
    ours = {
        **(first or {}),
        "index": document.index,
        "score": hit.score,
        "document": hit.document,
        "truncated": hit.truncated,
        **({} if hit.span is None else {"span": hit.span}),
    }
    return beside(ours, document.fields)


def _as_trec(answer: Answer) -> Iterator[str]:
    for rank, hit in enumerate(answer.ranking, 1):
        yield f"{answer.query.id} Q0 {answer.document(hit).id} {rank} {hit.score!r} {_TREC_TAG}"


def _check_trec_id(name: str, place: object) -> None:
    if not name or name.split() != [name]:
        raise InputError(f"{place}: the id {name!r} is empty or has spaces, which a TREC run cannot hold")


def _as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _printable(text: str) -> str:
    """Return a text on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
