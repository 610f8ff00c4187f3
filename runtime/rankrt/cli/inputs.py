"""What the command line reads: documents, queries and pairs, from lines of text, JSON, CSV or TSV.

Every record knows its place in the file, for messages, and what stood beside its text. Files are UTF-8; a byte-order
mark is skipped, UTF-16 and UTF-32 are read if they begin with one, and gzip is unpacked. A line ends with \\n or \\r\\n
and nowhere else, as `wc -l` and editors count. Whatever cannot be read is an InputError that names the file and line.
Knows no model and no command.
"""

import codecs
import csv
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rankrt.errors import InputError
from rankrt.text.pairs import Pair

Format: TypeAlias = Literal["text", "jsonl", "json", "csv", "tsv"]
FORMATS: tuple[Format, ...] = get_args(Format)
STANDARD_INPUT = "-"

_ENDINGS: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
_DELIMITERS: Mapping[Format, str] = {"csv": ",", "tsv": "\t"}
# Where a document's text is looked for, and where an id: the names that data sets such as BEIR and MS MARCO use.
_TEXT_KEYS = ("text", "document", "passage", "content")
_QUERY_KEYS = ("query", "text")
_ID_KEYS = ("id", "_id", "query_id", "qid", "doc_id", "docid", "docno", "pid")
# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xfd7zX": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"PAR1\x15": "a Parquet file",  # the byte after the letters begins the first page's header
}
_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
# How many lines are looked at before lines of JSON strings are taken for text.
_N_TRIED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record stands: the file, and the line, the item of an array or the row of columns, counted from 1."""

    file: str
    unit: Literal["line", "item", "row"]
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.short}"

    @property
    def short(self) -> str:
        """The place without the file's name."""
        return f"{self.unit} {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line, item or row: a string, another JSON value, or an object of a CSV row's cells.

    index   its number in the file, from 0: the line's in text and JSON Lines, else the item's or row's
    """

    place: Place
    index: int
    content: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text to rank. `fields` is what stood beside it, `index` its number in the file, from 0."""

    text: str
    index: int
    place: Place
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its id if it has one, else its number."""
        return _id_of(self.fields, self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What documents are ranked by. `place` is the option or the line that it comes from.

    documents   its candidates; None as long as it has none
    """

    text: str
    place: str
    index: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    documents: tuple[Document, ...] | None = None

    @property
    def id(self) -> str:
        """Its id if it has one, else its number."""
        return _id_of(self.fields, self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPair:
    """A query and a passage to score, with what stood beside them."""

    pair: Pair
    place: Place
    fields: Mapping[str, Any]


def format_of(name: str) -> Format | None:
    """Return the format that a file's name tells, with or without .gz; None if it tells none."""
    path = Path(name.lower())
    return _ENDINGS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)


def open_input(name: str) -> io.BufferedReader:
    """Open a file, or for "-" standard input. Raises InputError if it cannot be opened."""
    if name == STANDARD_INPUT and sys.stdin is None:
        # A library may have its own file under the free number by now: libffi 3.5 opens itself when it is loaded.
        raise InputError(f"{_shown(name)} cannot be read: it is closed")
    try:
        return open(0 if name == STANDARD_INPUT else name, "rb", closefd=name != STANDARD_INPUT)
    except OSError as error:
        raise InputError(f"{_shown(name)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{name!r} cannot be read: {error}") from error


def read_documents(
    file: io.BufferedIOBase, name: str, format: Format | None = None, column: str | None = None
) -> list[Document]:
    """Return the documents of a file; blank lines are skipped.

    name     the file's name, for messages and, unless `format` is given, for its format: text if it tells none
    column   the key or column that holds the text, or a column's number in a file without a header
    """
    format, numbered = format or format_of(name), lines(file, name)
    if format is None:
        numbered = _not_json(numbered, name)
    if format in (None, "text") and column is not None:
        raise InputError(f"{_shown(name)} is read as text, which has no columns; leave --column out or give --format")
    return [_document(record, column) for record in records(numbered, name, format or "text", column)]


def read_queries(file: io.BufferedIOBase, name: str) -> list[Query]:
    """Return the queries of a file: texts, or objects with "query", perhaps an id and perhaps "documents".

    A file whose name tells no format is JSON if its first line is an object or begins an array.
    """
    format, numbered = format_of(name), lines(file, name)
    if format is None:
        first, numbered = _begun_lines(numbered)
        format = "json" if _is_json_object(first) else "text"
    return [_query(record) for record in records(numbered, name, format)]


def with_documents(queries: Sequence[Query], documents: Sequence[Document] | None) -> list[Query]:
    """Return queries with these documents, or with their own. Raises InputError for a query with both or neither."""
    for query in queries:
        if documents is None and query.documents is None:
            raise InputError(f'{query.place} has no documents; give --documents FILE, or "documents" beside the query')
        if documents is not None and query.documents is not None:
            raise InputError(f'{query.place} has "documents" of its own; leave --documents out')
    if documents is None:
        return list(queries)
    return [replace(query, documents=tuple(documents)) for query in queries]


def read_pairs(
    file: io.BufferedIOBase,
    name: str,
    format: Format | None = None,
    *,
    query: str = "query",
    passage: str = "passage",
) -> Iterator[PlacedPair]:
    """Yield the pairs of a file as they are read: objects with a query and a passage. A blank line is an error.

    format          by default what the name tells, else JSON
    query, passage  their keys or columns
    """
    format = format or format_of(name) or "json"
    numbered = lines(file, name)
    return (_pair(record, query, passage) for record in records(numbered, name, format, skips_blank=False))


def records(
    numbered: Iterator[tuple[int, str]],
    name: str,
    format: Format,
    column: str | None = None,
    *,
    skips_blank: bool = True,
) -> Iterator[Record]:
    """Yield the records that stand in numbered lines; `name` is for messages."""
    match format:
        case "csv" | "tsv":
            return _rows(numbered, name, _DELIMITERS[format], column)
        case "json" | "jsonl":
            return _json_records(numbered, name, skips_blank=skips_blank)
        case "text":
            return (
                Record(place=_line(name, number), index=number - 1, content=line.removesuffix("\n").removesuffix("\r"))
                for number, line in numbered
                if line.strip()
            )


def lines(file: io.BufferedIOBase, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a stream with their numbers, counted from 1, and with their ends."""
    shown = _shown(name)
    for number, line in enumerate(_raw_lines(file, shown), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{shown}, line {number} is not UTF-8 (byte {line[error.start]:#04x} after"
                f" {len(line[: error.start].decode())} characters). Convert the file first, for example with:"
                " iconv -f WINDOWS-1252 -t UTF-8"
            ) from error
        if "\0" in text:
            raise InputError(
                f"{shown}, line {number} has a NUL byte, so this is not text in UTF-8. (UTF-16 is read if the file"
                " begins with a byte-order mark.)"
            )
        yield number, text


def _raw_lines(file: io.BufferedIOBase, shown: str) -> Iterator[bytes]:
    """Yield lines in UTF-8, without a byte-order mark."""
    try:
        head, stream = _begun(file)
        if head.startswith(_GZIP):
            head, stream = _begun(gzip.GzipFile(fileobj=stream))
        for mark, packed in _PACKED.items():
            if head.startswith(mark):
                raise InputError(f"{shown} is {packed}, which is not read. Unpack or convert it first")
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                stream = io.BytesIO(_recoded(stream.read(), encoding, shown))
                break
        if head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield from stream
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{shown} cannot be read to its end: {reason}") from error


def _begun(file: io.BufferedIOBase) -> tuple[bytes, io.BufferedIOBase]:
    """Return the first bytes of a stream, and a stream that begins with them still."""
    n_bytes = len(max(_PACKED, key=len))
    head = file.read(n_bytes)
    if len(head) < n_bytes:  # it has ended; a terminal that is asked again would wait for another Ctrl-D
        return head, io.BytesIO(head)
    return head, io.BufferedReader(_Rejoined(head, file), 1 << 16)


class _Rejoined(io.RawIOBase):
    """A stream together with its first bytes, which were read already."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        chunk = chunk or self._rest.read1(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _recoded(content: bytes, encoding: str, shown: str) -> bytes:
    try:
        return content.decode(encoding).encode()
    except UnicodeError as error:
        raise InputError(f"{shown} begins with the mark of {encoding.upper()} but is not: {error}") from error


def _not_json(numbered: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, str]]:
    """Return the lines. Raises InputError if they look like JSON, which would be ranked as it stands."""
    first, numbered = _begun_lines(numbered)
    if _is_json_object(first) or (first and _is_json(first, str)):
        raise InputError(
            f"{_shown(name)} looks like JSON. Say --format jsonl to read it as such, or --format text to take every"
            " line as it stands"
        )
    return numbered


def _begun_lines(numbered: Iterator[tuple[int, str]]) -> tuple[list[str], Iterator[tuple[int, str]]]:
    """Return the first lines that are not blank, and all lines."""
    first = list(islice(numbered, _N_TRIED))
    return [line.strip() for _, line in first if line.strip()], chain(first, numbered)


def _is_json_object(first: Sequence[str]) -> bool:
    return bool(first) and (first[0] in "[{" or _is_json(first[:1], dict | list))


def _is_json(texts: Sequence[str], kind: Any) -> bool:
    try:
        return all(isinstance(json.loads(text), kind) for text in texts)
    except (ValueError, RecursionError):
        return False


def _json_records(numbered: Iterator[tuple[int, str]], name: str, *, skips_blank: bool) -> Iterator[Record]:
    """Yield the values of a file that has one a line, or of one that is an array."""
    is_first = True
    for number, line in numbered:
        place = _line(name, number)
        if not line.strip():
            if skips_blank:
                continue
            raise InputError(f"{place} is blank; every line is a pair, so that scores and lines agree")
        if is_first and line.lstrip().startswith("["):
            items = _parsed("".join(line for _, line in chain([(number, line)], numbered)), name, number)
            for index, item in enumerate(items):
                yield Record(place=Place(file=_shown(name), unit="item", number=index + 1), index=index, content=item)
            return
        is_first = False
        yield Record(place=place, index=number - 1, content=_parsed(line, name, number))


def _parsed(text: str, name: str, first: int) -> Any:
    """Parse JSON that begins in line `first`. Raises InputError for what is not JSON or holds half a character."""
    place = _line(name, first)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _HALF_A_CHARACTER.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = _line(name, first + error.lineno - 1)
        raise InputError(f"{place} is not JSON: {error.msg}, at column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} has half of a character (\\u{ord(error.object[error.start]):04x}): a text was cut inside it."
            " Remove that escape"
        ) from error
    except RecursionError as error:
        raise InputError(f"{place} is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON; write null")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return number


def _rows(numbered: Iterator[tuple[int, str]], name: str, delimiter: str, column: str | None) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default, which a document may have
    # As IANA defines TSV, and MS MARCO and TREC write it, a quote there is a character like any other.
    is_quoted = delimiter != "\t"
    reader = csv.reader(
        (line for _, line in numbered),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    index, first = 0, 1
    try:
        for row in reader:
            first, place = reader.line_num + 1, _line(name, first)
            if not row:
                continue
            if header is None:
                is_named = column is None or not column.isdecimal()
                header = [cell.strip() for cell in row] if is_named else [str(i) for i in range(1, len(row) + 1)]
                if len(set(header)) < len(header):
                    raise InputError(f"{place}: two columns have the same name: {', '.join(header)}")
                if is_named:
                    continue
            if len(row) != len(header):
                raise InputError(f"{place} has {len(row)} cells, but the first row has {len(header)}")
            yield Record(place=place, index=index, content=dict(zip(header, row, strict=True)))
            index += 1
    except csv.Error as error:
        raise InputError(f"{_line(name, first)} is not a row of cells: {error}") from error


def _document(record: Record, column: str | None) -> Document:
    content, place = record.content, record.place
    if isinstance(content, str) and column is None:
        return Document(text=content, index=record.index, place=place)
    if not isinstance(content, dict):
        raise InputError(f'{place}: expected a string or an object with "text", got {_excerpt(content)}')
    key = column or _text_key(content, place)
    text = content.get(key)
    if not isinstance(text, str):
        found = f"{key!r} is {_excerpt(text)}" if key in content else f"there is no {key!r}, only {_names(content)}"
        raise InputError(f"{place}: {found}; expected a string there, or name its key or column with --column")
    return Document(text=text, index=record.index, place=place, fields=_others(content, key))


def _text_key(content: Mapping[str, Any], place: Place) -> str:
    """Return the key under which a document's text is, by its usual names."""
    known = [key for key in _TEXT_KEYS if key in content]
    if "text" in known or len(known) == 1:
        return known[0]
    which = f"{' and '.join(known)} could both be" if known else f"none of {', '.join(_TEXT_KEYS)} is there as"
    raise InputError(f"{place}: {which} the text; name its key or column with --column: {_names(content)}")


def _query(record: Record) -> Query:
    content, place = record.content, record.place
    if isinstance(content, str):
        content = {"query": content}
    key = next((key for key in _QUERY_KEYS if isinstance(content, dict) and key in content), None)
    if key is None or not isinstance(content[key], str) or not content[key].strip():
        raise InputError(f'{place}: expected {{"query": ...}} with a text that is not empty, got {_excerpt(content)}')
    found, rest = None, _others(content, key)
    if "documents" in rest:
        found, rest = _candidates(rest["documents"], place), _others(rest, "documents")
    return Query(text=content[key], place=str(place), index=record.index, fields=rest, documents=found)


def _candidates(documents: Any, place: Place) -> tuple[Document, ...]:
    if not isinstance(documents, list):
        raise InputError(f'{place}: "documents" is {_excerpt(documents)}, expected an array of strings or objects')
    within = (Place(file=str(place), unit="item", number=i + 1) for i in range(len(documents)))
    return tuple(
        _document(Record(place=here, index=i, content=content), None)
        for i, (here, content) in enumerate(zip(within, documents, strict=True))
    )


def _pair(record: Record, query_key: str, passage_key: str) -> PlacedPair:
    content, place = record.content, record.place
    query, passage = (content.get(key) if isinstance(content, dict) else None for key in (query_key, passage_key))
    if not isinstance(query, str) or not isinstance(passage, str) or not query.strip():
        raise InputError(
            f'{place}: expected {{"{query_key}": ..., "{passage_key}": ...}} with a query that is not empty,'
            f" got {_excerpt(content)}"
        )
    return PlacedPair(pair=(query, passage), place=place, fields=_others(content, query_key, passage_key))


def _id_of(fields: Mapping[str, Any], index: int) -> str:
    return next((str(fields[key]) for key in _ID_KEYS if isinstance(fields.get(key), str | int)), str(index))


def _others(content: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _line(name: str, number: int) -> Place:
    return Place(file=_shown(name), unit="line", number=number)


def _shown(name: str) -> str:
    return "standard input" if name == STANDARD_INPUT else name


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(content) or "nothing"


def _excerpt(content: Any) -> str:
    try:
        return f"{json.dumps(content, ensure_ascii=False):.80}"
    except RecursionError:
        return "a value that is nested deeply"
