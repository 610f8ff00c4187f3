"""How rankings and scores are written: a table for people, and JSON, JSON Lines, CSV and TREC runs for programs.

What stood beside a text in its file stands beside its score. Values in, lines out: knows no stream.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from rankrt.errors import InputError
from rankrt.inputs import Document, Query
from rankrt.ranking import Hit, Ranking

RankingFormat: TypeAlias = Literal["text", "json", "jsonl", "csv", "trec"]
RANKING_FORMATS: tuple[RankingFormat, ...] = get_args(RankingFormat)
ScoreFormat: TypeAlias = Literal["jsonl", "csv"]
SCORE_FORMATS: tuple[ScoreFormat, ...] = get_args(ScoreFormat)

# The last column of a TREC run names what made it.
_TREC_TAG = "rankrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The ranking of a query's documents. `is_one_of_several` says whether the output has to name the query."""

    query: Query
    documents: Sequence[Document]
    ranking: Ranking
    is_one_of_several: bool = False


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


def written(answer: Answer, format: RankingFormat, table: Table) -> Iterator[str]:
    """Yield the lines of an answer; `table` is for CSV."""
    match format:
        case "text":
            yield from _as_text(answer)
        case "json":
            yield json.dumps(_as_object(answer), ensure_ascii=False)
        case "jsonl":
            yield from (json.dumps(hit, ensure_ascii=False) for hit in _hits(answer))
        case "csv":
            yield from map(table.row, _hits(answer))
        case "trec":
            yield from _as_trec(answer)


def columns(
    queries: Sequence[Query], documents: Sequence[Document], *, has_spans: bool, are_several: bool
) -> list[str]:
    """Return the columns of CSV for rankings of these queries and documents."""
    of_queries = [document for query in queries for document in query.documents or ()]
    own = [*(["query_id"] if are_several else []), "rank", *_HIT_COLUMNS, *(["span"] if has_spans else [])]
    names = dict.fromkeys(name for document in (*documents, *of_queries) for name in document.fields)
    return list(beside(dict.fromkeys(own), names))


def beside(own: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return our values with the fields of the input; one with the name of ours is called input_... ."""
    joined = dict(own)
    for name, value in fields.items():
        while name in joined:
            name = f"input_{name}"
        joined[name] = value
    return joined


def trec_id(name: str, place: object) -> str:
    """Return an id that a TREC run can hold. Raises InputError for one with spaces, which part its columns."""
    if not name or name.split() != [name]:
        raise InputError(f"{place}: the id {name!r} is empty or has spaces, which a TREC run cannot hold")
    return name


_HIT_COLUMNS = ("index", "score", "document", "truncated")


def _as_text(answer: Answer) -> Iterator[str]:
    if answer.is_one_of_several:
        yield f"# {answer.query.id}: {_printable(answer.query.text)}"
    for rank, hit in enumerate(answer.ranking, 1):
        mark = " [truncated]" if hit.truncated else ""
        place = answer.documents[hit.index].place.short
        yield f"{rank:>3}  {hit.score:>9.4f}  {place:<10}  {_printable(hit.document)}{mark}"


def _as_object(answer: Answer) -> dict[str, Any]:
    ranking = answer.ranking
    asked = {"query": answer.query.text} if answer.is_one_of_several else {}
    own = {
        **asked,
        "results": [_with_fields(answer, hit) for hit in ranking],
        "n_documents": ranking.n_documents,
        "n_tokens": ranking.n_tokens,
        "n_refined": ranking.n_refined,
        "n_saved_tokens": ranking.n_saved_tokens,
        **({"progress": asdict(ranking.progress)} if ranking.progress else {}),
        "query_truncated": ranking.query_truncated,
    }
    return beside(own, answer.query.fields)


def _hits(answer: Answer) -> Iterator[dict[str, Any]]:
    named = {"query_id": answer.query.id} if answer.is_one_of_several else {}
    for rank, hit in enumerate(answer.ranking, 1):
        yield _with_fields(answer, hit, {**named, "rank": rank})


def _with_fields(answer: Answer, hit: Hit, named: Mapping[str, Any] | None = None) -> dict[str, Any]:
    document = answer.documents[hit.index]
    span = {} if hit.span is None else {"span": hit.span}
    own = {
        **(named or {}),
        "index": document.index,
        "score": hit.score,
        "document": hit.document,
        "truncated": hit.truncated,
        **span,
    }
    return beside(own, document.fields)


def _as_trec(answer: Answer) -> Iterator[str]:
    for rank, hit in enumerate(answer.ranking, 1):
        document = answer.documents[hit.index]
        yield f"{answer.query.id} Q0 {document.id} {rank} {hit.score!r} {_TREC_TAG}"


def _printable(text: str) -> str:
    """Return a text on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
