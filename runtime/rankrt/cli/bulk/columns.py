"""Pairs as columns of Parquet and Arrow files, by pyarrow of the extra `parquet`. Knows no model.

Columns beside the texts are never turned into Python's values on their way into such a file, so every type survives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from rankrt.arrays import Int64Array
from rankrt.cli.bulk.chunks import Names
from rankrt.cli.inputs import STANDARD_INPUT
from rankrt.errors import InputError, MissingExtra
from rankrt.text.pairs import Pair

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import TypeIs

ColumnFormat: TypeAlias = Literal["parquet", "arrow"]
COLUMN_FORMATS: tuple[ColumnFormat, ...] = get_args(ColumnFormat)
COLUMN_ENDINGS: Mapping[str, ColumnFormat] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
# A stream of Arrow has no such mark; its name has to say what it is.
_MARKS: Mapping[bytes, ColumnFormat] = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_ROWS_AT_ONCE = 1024


def column_format_of(name: str) -> ColumnFormat | None:
    """Return the format with columns that a file's name tells, or else how the file begins; None for any other."""
    if (found := COLUMN_ENDINGS.get(Path(name.lower()).suffix)) is not None or name == STANDARD_INPUT:
        return found
    try:
        if not Path(name).is_file():  # a pipe that has a name can be read only once
            return None
        with open(name, "rb") as file:
            head = file.read(max(map(len, _MARKS)))
    except (OSError, ValueError):
        return None
    return next((format for mark, format in _MARKS.items() if head.startswith(mark)), None)


def is_columns(format: object) -> TypeIs[ColumnFormat]:
    """Tell whether a format has columns."""
    return format in COLUMN_FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A chunk of pairs from a file with columns. `first` is the number of its first row in the file, from 0."""

    table: pa.Table
    file: str
    first: int
    names: Names

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def pairs(self) -> Sequence[Pair]:
        """The texts. Raises InputError, with the row, for one that is missing, and for an empty query."""
        queries, passages = (self.table.column(name).to_pylist() for name in (self.names.query, self.names.passage))
        for number, (query, passage) in enumerate(zip(queries, passages, strict=True)):
            if query is None or passage is None or not query.strip():
                wrong = self.names.passage if query is not None and query.strip() else self.names.query
                raise InputError(f"{self.place(number)}: column {wrong!r} is empty; remove the row, or fill it")
        return list(zip(queries, passages, strict=True))

    def place(self, number: int) -> str:
        """Return the file and the row of a pair, counted from 1."""
        return f"{self.file}, row {self.first + number + 1}"

    def cut(self, start: int, stop: int) -> Columns:
        """Return the pairs from one number up to another."""
        return self._with(self.table.slice(start, stop - start), self.first + start)

    def joined(self, others: Sequence[Columns]) -> Columns:
        """Return these pairs with the next ones of the file."""
        return self._with(_pyarrow().concat_tables([self.table, *(other.table for other in others)]), self.first)

    def take(self, numbers: Int64Array) -> Columns:
        """Return the pairs of these numbers, in this order; messages about them have no place any more."""
        return self._with(self.table.take(_pyarrow().array(numbers)), self.first)

    def rows(self, *, has_text: bool) -> list[Mapping[str, Any]]:
        """Return the other columns of each pair as values of JSON. Raises InputError for a type that JSON lacks."""
        table = self.beside(has_text=has_text)
        for field in table.schema:
            if not _is_json(field.type):
                raise InputError(
                    f"{self.file}: column {field.name!r} holds {field.type}, which lines of text cannot hold. Write"
                    " Parquet or Arrow instead, or leave the column out"
                )
        found: list[Mapping[str, Any]] = table.to_pylist()
        return found

    def beside(self, *, has_text: bool) -> pa.Table:
        """Return the columns that stand beside the texts, or all of them."""
        texts = () if has_text else (self.names.query, self.names.passage)
        return self.table.select([name for name in self.table.column_names if name not in texts])

    def _with(self, table: pa.Table, first: int) -> Columns:
        return Columns(table=table, file=self.file, first=first, names=self.names)


def read_columns(name: str, format: ColumnFormat, names: Names, size: int, *, has_all: bool) -> Iterator[Columns]:
    """Yield the pairs of a file in chunks of `size` rows or fewer, with all columns or with those of the texts only.

    Raises InputError for a file that is damaged or has other columns.
    """
    pa, first, texts = _pyarrow(), 0, (names.query, names.passage)
    with _reading(name):
        for batch in _batches(name, format, texts, size, has_all=has_all):
            if batch.num_rows:
                yield Columns(table=pa.Table.from_batches([batch]), file=name, first=first, names=names)
                first += batch.num_rows


def read_rows(name: str, format: ColumnFormat) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file, whatever columns it has. Raises InputError for a file that is damaged."""
    with _reading(name):
        for batch in _batches(name, format, (), _ROWS_AT_ONCE, has_all=True):
            yield from batch.to_pylist()


def _batches(
    name: str, format: ColumnFormat, texts: Sequence[str], size: int, *, has_all: bool
) -> Iterator[pa.RecordBatch]:
    if name == STANDARD_INPUT:
        raise InputError(f"standard input cannot be read as {format}, which needs a file")
    wanted = None if has_all else list(dict.fromkeys(texts))
    if format == "parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(name) as file:
            _check(name, file.schema_arrow, texts)
            yield from file.iter_batches(batch_size=size, columns=wanted)
        return
    with _pyarrow().memory_map(name) as source, _arrow(source) as reader:
        _check(name, reader.schema, texts)
        batches = (
            reader if not hasattr(reader, "get_batch") else map(reader.get_batch, range(reader.num_record_batches))
        )
        for batch in batches:
            chosen = batch if wanted is None else batch.select(wanted)
            yield from (chosen.slice(start, size) for start in range(0, batch.num_rows, size))


def _arrow(source: Any) -> Any:
    """Open an Arrow file, or a stream that was written to a file."""
    ipc = _pyarrow().ipc
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return ipc.open_file(source) if is_file else ipc.open_stream(source)


class ColumnWriter:
    """Writes tables of one schema, some chunks at once: a group of a few rows is large and slow to read."""

    # Groups of about so many rows or bytes, whichever comes first. Rows of text are looked at for their types in parts.
    _GROUP_ROWS, _GROUP_BYTES, _PART_ROWS = 1 << 16, 64 << 20, 1 << 12

    def __init__(self, path: Path, format: ColumnFormat) -> None:
        self._path = path
        self._format = format
        self._tables: list[pa.Table] = []
        self._rows: list[Mapping[str, Any]] = []
        self._writer: Any = None

    def write_beside(self, ours: Mapping[str, Any], beside: pa.Table) -> None:
        """Write our columns, and the input's after them. A column with the name of ours is called input_... ."""
        table = _pyarrow().table(dict(ours))
        for name in beside.column_names:
            renamed = name
            while renamed in table.column_names:
                renamed = f"input_{renamed}"
            table = table.append_column(beside.schema.field(name).with_name(renamed), beside.column(name))
        self._add(table)

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows; the first some thousand say which columns there are, and of which types."""
        self._rows += rows
        if len(self._rows) >= self._PART_ROWS:
            self._add_rows()

    def close(self) -> None:
        """Write what waits, and the file's end. A file without rows has our columns only."""
        pa = _pyarrow()
        self._add_rows()
        if self._tables:
            self._flush()
        self._open(pa.schema([("score", pa.float32()), ("truncated", pa.bool_())]))
        self._writer.close()

    def _add_rows(self) -> None:
        if self._rows:
            self._add(self._table(self._rows))
            self._rows = []

    def _add(self, table: pa.Table) -> None:
        self._open(table.schema)
        self._tables.append(table)
        n_rows, n_bytes = (sum(getattr(t, name) for t in self._tables) for name in ("num_rows", "nbytes"))
        if n_rows >= self._GROUP_ROWS or n_bytes >= self._GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(_pyarrow().concat_tables(self._tables).combine_chunks())
        self._tables = []

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        pa = _pyarrow()
        schema = None if self._writer is None else self._writer.schema
        names = dict.fromkeys(name for row in rows for name in row)
        if schema is not None and (other := [name for name in names if name not in schema.names]):
            raise InputError(
                f"{other[0]!r} is not among the first {self._PART_ROWS:,} rows; write lines of text instead"
            )
        try:
            found = {
                name: pa.array(
                    [row.get(name) for row in rows],
                    type=pa.float32() if name == "score" else None if schema is None else schema.field(name).type,
                )
                for name in (names if schema is None else schema.names)
            }
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise InputError(f"a field has values that one column cannot hold: {error}. Write lines instead") from error
        return pa.table(found, schema=schema)

    def _open(self, schema: pa.Schema) -> None:
        if self._writer is not None:
            return
        if self._format == "parquet":
            from pyarrow import parquet

            self._writer = parquet.ParquetWriter(self._path, schema)
        else:
            self._writer = _ArrowWriter(self._path, schema)


class _ArrowWriter:
    """pyarrow's writer of Arrow files, which neither knows its schema nor closes what it writes to."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._sink = _pyarrow().OSFile(str(path), "wb")
        self._writer = _pyarrow().ipc.new_file(self._sink, schema)

    def write_table(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


def _check(name: str, schema: pa.Schema, texts: Sequence[str]) -> None:
    """Raise InputError unless a file has the columns of the texts, and they hold text."""
    has = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    for column in texts:
        if column not in schema.names:
            raise InputError(
                f"{name} has no column {column!r}. It has: {has}. Name the columns of the texts with --query-column and"
                " --passage-column"
            )
        if schema.names.count(column) > 1:
            raise InputError(f"{name} has two columns called {column!r}; rename one of them")
        if not _is_text(schema.field(column).type):
            raise InputError(
                f"{name}: column {column!r} holds {schema.field(column).type}, expected text. It has: {has}"
            )


def _is_text(type: pa.DataType) -> bool:
    types = _pyarrow().types
    plain = type.value_type if types.is_dictionary(type) else type
    return bool(types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain))


def _is_json(type: pa.DataType) -> bool:
    """Tell whether JSON has values of a type, in lists and structs, too."""
    types = _pyarrow().types
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return _is_json(type.value_type)
    if types.is_struct(type):
        return all(_is_json(type.field(i).type) for i in range(type.num_fields))
    plain = types.is_boolean(type) or types.is_integer(type) or types.is_floating(type) or types.is_null(type)
    return bool(plain) or _is_text(type)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn pyarrow's errors into ours."""
    pa = _pyarrow()
    try:
        yield
    except pa.ArrowException as error:
        raise InputError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or ' '.join(str(error).split())}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "Parquet and Arrow files need pyarrow, which is not installed: pip install 'rankrt[cpu,parquet]'"
        ) from error
    return pyarrow
