"""The steps of `rankrt score`: pairs to lines at once, or to a file by a job that may be stopped and continued."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np

from rankrt.cli import inputs, outputs, terminal
from rankrt.cli.bulk.checkpoint import Checkpoint, open_checkpoint
from rankrt.cli.bulk.chunks import Chunk, Names, Scored, read_rows
from rankrt.cli.bulk.columns import (
    COLUMN_FORMATS,
    ColumnFormat,
    Columns,
    ColumnWriter,
    column_format_of,
    is_columns,
    read_columns,
)
from rankrt.cli.bulk.scoring import chunk_size, score_chunks, score_in_processes
from rankrt.cli.bulk.selection import Selection, Told
from rankrt.cli.inputs import Format
from rankrt.cli.outputs import ScoreFormat
from rankrt.errors import InputError
from rankrt.reranker import Reranker

InputFormat: TypeAlias = Format | ColumnFormat
OutputFormat: TypeAlias = ScoreFormat | ColumnFormat
INPUT_FORMATS = (*(format for format in inputs.FORMATS if format != "text"), *COLUMN_FORMATS)
OUTPUT_FORMATS: tuple[OutputFormat, ...] = (*get_args(ScoreFormat), *COLUMN_FORMATS)
_OUTPUT_ENDINGS: Mapping[str, OutputFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of pairs. `format` is what its name tells unless it is given."""

    name: str
    format: InputFormat | None
    names: Names

    def chunks(self, size: int, *, has_all: bool = True) -> Iterator[Chunk]:
        """Yield the pairs from the beginning; without `has_all` columns beside the texts may be left out."""
        format = self.format or column_format_of(self.name)
        if is_columns(format):
            yield from read_columns(self.name, format, self.names, size, has_all=has_all)
            return
        with terminal.open_input(self.name) as file:
            yield from read_rows(file, self.name, format, self.names, size)


def line_format(asked: OutputFormat | None) -> ScoreFormat:
    """Return the format for standard output. Raises InputError for one with columns."""
    if is_columns(asked):
        raise InputError(f"{asked} is not written to standard output; name a file with --out")
    return asked or "jsonl"


def file_format(out: Path, asked: OutputFormat | None) -> OutputFormat:
    """Return the format of a file. Raises InputError for a name that tells none."""
    found = asked or _OUTPUT_ENDINGS.get(out.suffix.lower()) or column_format_of(out.name)
    if found is None:
        raise InputError(
            f"the name of {out} tells no format; end it with .jsonl, .csv, .parquet or .arrow, or give --output-format"
        )
    return found


def score_to_lines(
    reranker: Reranker, source: Source, selection: Selection, format: ScoreFormat, n_processes: int, bar: Any
) -> Iterator[str]:
    """Yield the lines of all pairs, as they are scored."""
    chunks = selection.in_order(source.chunks(chunk_size(reranker)))
    scored = _counted(_scored(reranker, n_processes, chunks), bar.update)
    yield from outputs.score_lines(_rows_of(selection, scored), format)


def score_to_file(
    reranker: Reranker, source: Source, selection: Selection, out: Path, format: OutputFormat, n_processes: int
) -> int:
    """Score a file into another one, which appears when all is scored. Returns the number of pairs that were read.

    The logits are kept in a checkpoint on the way. Called again after it was killed, it scores what is missing, and
    the output has the same bytes. All pairs are read before the first is scored, so a line that cannot be read is
    found at once. Raises InputError for such a line, and for an output that is there already.
    """
    check_output(out)
    if source.name == inputs.STANDARD_INPUT or (Path(source.name).exists() and not Path(source.name).is_file()):
        raise InputError("--out needs a file of pairs, which is read more than once; a stream is read once")
    size = chunk_size(reranker)
    n_pairs = sum(len(chunk.pairs) for chunk in selection.in_order(source.chunks(size, has_all=False)))
    with open_checkpoint(Path(f"{out}.unfinished"), _job(reranker, source, size)) as checkpoint:
        with terminal.progress(n_pairs, checkpoint.n_pairs, "pair") as update:
            rest = _from(checkpoint.n_pairs, source.chunks(size, has_all=False))
            for part in _scored(reranker, n_processes, rest):
                checkpoint.append(part.logits, part.truncated)
                update(len(part))
        unfinished = out.with_name(f".unfinished-{out.name}")
        try:
            _write(unfinished, format, selection, _read_again(source.chunks(size), checkpoint))
            os.replace(unfinished, out)
        finally:
            unfinished.unlink(missing_ok=True)
    return n_pairs


def check_output(out: Path) -> None:
    """Raise InputError for an output that exists, or whose folder does not."""
    if out.exists():
        raise InputError(f"{out} exists; remove it or choose another name: scores are never written over")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out} cannot be written: {out.parent} is not a folder")


def _job(reranker: Reranker, source: Source, size: int) -> Mapping[str, Any]:
    """Return all that the logits of a file depend on, under the names that a message tells."""
    state = os.stat(source.name)
    return {
        "the artifact": reranker.artifact.identity,
        "the variant": reranker.variant.name,
        "cutoff_layer": reranker.cutoff_layer,
        **asdict(reranker.rules),
        "a file of pairs of this size": state.st_size,
        "a file of pairs of this time": state.st_mtime_ns,
        "columns": asdict(source.names),
        "chunks": size,
    }


def _scored(reranker: Reranker, n_processes: int, chunks: Iterable[Chunk]) -> Iterator[Scored]:
    if n_processes == 1:
        return score_chunks(reranker, chunks)
    if reranker.device.is_gpu:
        raise InputError(f"n_processes={n_processes} is for the CPU; one process is enough for a GPU")
    return score_in_processes(reranker, n_processes, chunks)


def _from(n_done: int, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield the pairs that come after the first ones."""
    for chunk in chunks:
        n_skipped = min(n_done, len(chunk))
        n_done -= n_skipped
        if n_skipped < len(chunk):
            yield chunk.cut(n_skipped, len(chunk)) if n_skipped else chunk


def _read_again(chunks: Iterable[Chunk], checkpoint: Checkpoint) -> Iterator[Scored]:
    """Yield chunks with the logits that a checkpoint has for them, whose blocks may have other ends."""
    blocks, logits, truncated = checkpoint.blocks(), np.zeros(0, np.float32), np.zeros(0, bool)
    for chunk in chunks:
        n = len(chunk)
        while len(logits) < n:
            more_logits, more_truncated = next(blocks)
            logits, truncated = np.concatenate([logits, more_logits]), np.concatenate([truncated, more_truncated])
        yield Scored(chunk=chunk, logits=logits[:n], truncated=truncated[:n])
        logits, truncated = logits[n:], truncated[n:]


def _counted(scored: Iterable[Scored], update: Callable[[int], object]) -> Iterator[Scored]:
    for part in scored:
        yield part
        update(len(part))


def _rows_of(selection: Selection, scored: Iterable[Scored]) -> Iterator[list[dict[str, Any]]]:
    """Yield what is written of each chunk; none is empty."""
    return filter(None, (_rows(told, has_text=selection.has_text) for told in selection.told(scored)))


def _rows(told: Told, *, has_text: bool) -> list[dict[str, Any]]:
    columns = (column.tolist() for column in told.ours.values())
    ours = [dict(zip(told.ours, values, strict=True)) for values in zip(*columns, strict=True)]
    return [outputs.beside(*row) for row in zip(ours, told.chunk.rows(has_text=has_text), strict=True)]


def _write(path: Path, format: OutputFormat, selection: Selection, scored: Iterable[Scored]) -> None:
    if not is_columns(format):
        with path.open("w", encoding="utf-8", newline="") as file:
            for lines in outputs.score_lines(_rows_of(selection, scored), format):
                file.write(f"{lines}\n")
        return
    writer = ColumnWriter(path, format)
    for part in selection.told(scored):
        if isinstance(part.chunk, Columns):
            writer.write_beside(part.ours, part.chunk.beside(has_text=selection.has_text))
        else:
            writer.write_rows(_rows(part, has_text=selection.has_text))
    writer.close()
