"""Rankings that are kept in a folder: a file for each system, a line for each query, written as they are made.

A file's name has a digest of all that its rankings depend on, data and system. So a process that is killed loses the
block that it ranks, the same command continues after it, and rankings of other data are never taken for these.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from rankrt.errors import InputError
from rankrt_finetune.evaluation.rankings import Ranked, System

_FORMAT = 1
_LOCK = ".lock"


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A ranking. `scores` are null where a document got none, `seconds` are the query's share of its block."""

    query: str
    order: list[int]
    scores: list[float | None]
    n_truncated: int | None
    seconds: float


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and let no other evaluation write there. Raises InputError if one does."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another evaluation writes to {folder}. Wait for it, or name another folder") from error
    except FileExistsError as error:
        raise InputError(f"{folder} is a file; --output is a folder") from error
    try:
        yield
    finally:
        lock.release()


class Kept:
    """The rankings of one system on one data set, in the order of the queries."""

    def __init__(self, folder: Path, system: System, data: str) -> None:
        """Read the rankings that are there. `data` is the digest of the data set."""
        folder.mkdir(parents=True, exist_ok=True)
        depends_on = json.dumps({**system.identity, "data": data, "format": _FORMAT}, sort_keys=True)
        digest = hashlib.sha256(depends_on.encode()).hexdigest()[:16]
        readable = re.sub(r"[^\w.-]+", "-", system.name).strip("-.")
        self.path = folder / f"{readable[:80]}-{digest}.jsonl"
        self.seconds = 0.0
        self.rankings: dict[str, Ranked] = {}
        self._read()

    def add(self, queries: Sequence[str], rankings: Sequence[Ranked], seconds: float) -> None:
        """Keep the rankings of a block, which took so many seconds."""
        n_pairs = max(1, sum(len(ranked.order) for ranked in rankings))
        lines = [
            _Line(
                query=query,
                order=ranked.order.tolist(),
                scores=[None if score != score else score for score in ranked.scores.tolist()],
                n_truncated=ranked.n_truncated,
                seconds=seconds * len(ranked.order) / n_pairs,
            )
            for query, ranked in zip(queries, rankings, strict=True)
        ]
        with self.path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        self.seconds += seconds
        self.rankings.update(zip(queries, rankings, strict=True))

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            n_bytes = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._take(line)
                n_bytes += len(line)
            file.truncate(n_bytes)  # the rest is of a process that was killed while it wrote

    def _take(self, line: bytes) -> None:
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise InputError(f"{self.path} is damaged ({error}). Remove it; its pairs are scored again") from error
        scores: Any = [np.nan if score is None else score for score in found.scores]
        self.rankings[found.query] = Ranked(
            order=np.array(found.order, np.int64), scores=np.array(scores, np.float32), n_truncated=found.n_truncated
        )
        self.seconds += found.seconds
