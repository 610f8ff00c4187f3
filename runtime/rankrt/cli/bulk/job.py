"""The steps of `rankrt score`: pairs to lines at once, or to a file by a job that may be stopped and continued."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np

from rankrt.cli import inputs, outputs, terminal
from rankrt.cli.bulk.checkpoint import Checkpoint, open_checkpoint
from rankrt.cli.bulk.chunks import Chunk, Names, Scored, read_rows
from rankrt.cli.bulk.columns import (
    COLUMN_ENDINGS,
    COLUMN_FORMATS,
    ColumnFormat,
    Columns,
    ColumnWriter,
    column_format_of,
    is_columns,
    read_columns,
)
from rankrt.cli.bulk.scoring import chunk_size
from rankrt.cli.bulk.selection import Selection, Told
from rankrt.cli.inputs import Format
from rankrt.cli.outputs import ScoreFormat
from rankrt.errors import InputError
from rankrt.files.folders import UNFINISHED, new_folder
from rankrt.reranker import Reranker

# Chunks to logits, in their order: here, in several processes, or on a cluster.
Scoring: TypeAlias = Callable[[Iterable[Chunk]], Iterator[Scored]]
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
    reranker: Reranker, source: Source, selection: Selection, format: ScoreFormat, score: Scoring, bar: Any
) -> Iterator[str]:
    """Yield the lines of all pairs, as they are scored."""
    chunks = selection.in_order(source.chunks(chunk_size(reranker)))
    scored = _counted(score(chunks), bar.update)
    yield from outputs.score_lines(_rows_of(selection, scored), format)


def score_to_file(
    reranker: Reranker, source: Source, selection: Selection, out: Path, format: OutputFormat, score: Scoring
) -> int:
    """Score a file into another one, which appears when all is scored. Returns the number of pairs that were read.

    The logits are kept in a checkpoint on the way. Called again after it was killed, it scores what is missing, and
    the output has the same bytes. All pairs are read before the first is scored, so a line that cannot be read is
    found at once. Raises InputError for such a line, and for an output that is there already.
    """
    check_output(out)
    if source.name == inputs.STANDARD_INPUT or (Path(source.name).exists() and not Path(source.name).is_file()):
        raise InputError("--out needs a file of pairs, which is read more than once; a stream is read once")
    state = os.stat(source.name)
    given = {"a file of pairs of this size": state.st_size, "a file of pairs of this time": state.st_mtime_ns}
    with _logits(reranker, [source], selection, out, given, score) as logits:
        unfinished = out.with_name(f".unfinished-{out.name}")
        try:
            _write(unfinished, format, selection, logits.beside(source.chunks(chunk_size(reranker))))
            os.replace(unfinished, out)
        finally:
            unfinished.unlink(missing_ok=True)
    return logits.n_pairs


def score_to_folder(
    reranker: Reranker, source: Source, selection: Selection, out: Path, format: OutputFormat | None, score: Scoring
) -> int:
    """Score each file of a folder into one of the same name in another folder, which appears when all is scored.

    The files are one job with one checkpoint, otherwise as in `score_to_file`. A file has the format of its input
    unless `format` is given.
    """
    check_output(out)
    files = files_of(source)
    listing = [(name, os.stat(file.name).st_size, os.stat(file.name).st_mtime_ns) for name, file in files.items()]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    digested = {"files with this digest": digest}
    with _logits(reranker, list(files.values()), selection, out, digested, score) as logits:
        for left in out.absolute().parent.glob(f"{UNFINISHED}{glob.escape(out.name)}-*"):
            shutil.rmtree(left)  # by a process that was killed while it wrote; the checkpoint's lock is this one's
        with new_folder(out) as unfinished:
            for name, file in files.items():
                path = unfinished / (name if format is None else Path(name).with_suffix(f".{format}"))
                if path.exists():
                    raise InputError(f"two files of {source.name} would be written as {path.name}; rename one")
                path.parent.mkdir(parents=True, exist_ok=True)
                chunks = file.chunks(chunk_size(reranker))
                _write(path, format or file_format(path, None), selection, logits.beside(chunks))
    return logits.n_pairs


def files_of(source: Source) -> Mapping[str, Source]:
    """Return the files with columns in a folder and the folders in it, by their paths there, in order.

    Names that begin with a dot or an underscore are skipped, as other programs that write such folders do.
    """
    folder = Path(source.name)
    found = {
        name.as_posix(): replace(source, name=str(folder / name))
        for name in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        if name.suffix.lower() in COLUMN_ENDINGS and not any(part.startswith((".", "_")) for part in name.parts)
    }
    if not found:
        raise InputError(f"{folder} has no files that end with .parquet, .arrow or .feather; a folder is for those")
    return found


def check_output(out: Path) -> None:
    """Raise InputError for an output that exists, or whose folder does not."""
    if out.exists():
        raise InputError(f"{out} exists; remove it or choose another name: scores are never written over")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out} cannot be written: {out.parent} is not a folder")


@contextmanager
def _logits(
    reranker: Reranker,
    sources: Sequence[Source],
    selection: Selection,
    out: Path,
    given: Mapping[str, Any],
    score: Scoring,
) -> Iterator["_Logits"]:
    """Yield the logits of all pairs of some files, after those were scored that the checkpoint lacks.

    `given` says which files they are. The checkpoint is removed when the block ends without an error.
    """
    size = chunk_size(reranker)
    # All columns: one that is written beside the scores may be damaged, too, and scoring may take hours.
    n_pairs = sum(len(chunk.pairs) for chunk in selection.in_order(*(file.chunks(size) for file in sources)))
    job = {
        "the artifact": reranker.artifact.identity,
        "the variant": reranker.variant.name,
        "cutoff_layer": reranker.cutoff_layer,
        **asdict(reranker.rules),
        **given,
        "columns": asdict(sources[0].names),
        "chunks": size,
    }
    with open_checkpoint(Path(f"{out}.unfinished"), job) as checkpoint:
        with terminal.progress(n_pairs, checkpoint.n_pairs, "pair") as update:
            chunks = chain.from_iterable(file.chunks(size, has_all=False) for file in sources)
            for part in score(_from(checkpoint.n_pairs, chunks)):
                checkpoint.append(part.logits, part.truncated)
                update(len(part))
        yield _Logits(checkpoint)


def _from(n_done: int, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield the pairs that come after the first ones."""
    for chunk in chunks:
        n_skipped = min(n_done, len(chunk))
        n_done -= n_skipped
        if n_skipped < len(chunk):
            yield chunk.cut(n_skipped, len(chunk)) if n_skipped else chunk


class _Logits:
    """The logits of a checkpoint, taken in order for chunks that may have other ends than its blocks."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.n_pairs = checkpoint.n_pairs
        self._blocks = checkpoint.blocks()
        self._logits, self._truncated = np.zeros(0, np.float32), np.zeros(0, bool)

    def beside(self, chunks: Iterable[Chunk]) -> Iterator[Scored]:
        """Yield the next chunks with their logits."""
        for chunk in chunks:
            n = len(chunk)
            while len(self._logits) < n:
                logits, truncated = next(self._blocks)
                self._logits = np.concatenate([self._logits, logits])
                self._truncated = np.concatenate([self._truncated, truncated])
            yield Scored(chunk=chunk, logits=self._logits[:n], truncated=self._truncated[:n])
            self._logits, self._truncated = self._logits[n:], self._truncated[n:]


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
