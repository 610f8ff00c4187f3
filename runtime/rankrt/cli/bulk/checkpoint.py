"""The logits of a job so far, in a file beside its output: what was written there survives `kill -9`.

The file begins with a line of JSON that says what the job is. Blocks follow: the number of pairs, a CRC-32, the logits
as float32 and a byte for each pair that was truncated. A block that a kill cut short is scored again.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

import numpy as np

from rankrt.arrays import BoolArray, Float32Array
from rankrt.errors import InputError

_HEAD = Struct("<II")
_BYTES_A_PAIR = 5


class Checkpoint:
    """An open file of logits. `n_pairs` is how many there are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = file.tell()
        self.n_pairs = 0
        end = self._start
        for logits, _ in self.blocks():
            self.n_pairs += len(logits)
            end = self._file.tell()
        self._file.seek(end)
        self._file.truncate()

    def append(self, logits: Float32Array, truncated: BoolArray) -> None:
        """Add the logits of the next pairs, at once."""
        content = logits.astype("<f4").tobytes() + truncated.astype(np.uint8).tobytes()
        self._file.write(_HEAD.pack(len(logits), zlib.crc32(content)) + content)
        self._file.flush()
        self.n_pairs += len(logits)

    def blocks(self) -> Iterator[tuple[Float32Array, BoolArray]]:
        """Yield the logits of all blocks that are whole, and whether passages were truncated."""
        self._file.seek(self._start)
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            n_pairs, crc = _HEAD.unpack(head)
            content = self._file.read(n_pairs * _BYTES_A_PAIR)
            if len(content) < n_pairs * _BYTES_A_PAIR or zlib.crc32(content) != crc:
                return
            logits = np.frombuffer(content, "<f4", n_pairs).astype(np.float32)
            yield logits, np.frombuffer(content, np.uint8, offset=4 * n_pairs).astype(bool)


@contextmanager
def open_checkpoint(path: Path, job: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """Open the checkpoint of a job, or begin one; it is removed when the block ends without an error.

    Raises InputError if another process has it, or if it was begun by a job that would give other scores.
    """
    from filelock import FileLock, Timeout  # 8 ms, for a job with --out only

    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{path} is in use: another process scores for the same output. Wait for it") from error
    try:
        with path.open("r+b" if path.exists() and path.stat().st_size else "w+b") as file:
            line = file.readline()
            if not line.endswith(b"\n"):  # a new file, or one whose first line was never finished
                file.seek(0)
                file.truncate()
                file.write(json.dumps(job).encode() + b"\n")
                file.flush()
            else:
                _check_same(path, line, job)
            yield Checkpoint(file)
        path.unlink()
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held, so that no other process has it
        lock.release()


def _check_same(path: Path, line: bytes, job: Mapping[str, Any]) -> None:
    again = "Run the same command as before, or remove that file to begin again"
    try:
        begun = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path} is not a checkpoint of rankrt score. {again}") from error
    for name, value in json.loads(json.dumps(job)).items():
        if begun.get(name) != value:
            raise InputError(f"{path} was begun with {name} {begun.get(name)!r}, but now it is {value!r}. {again}")
