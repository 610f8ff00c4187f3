"""A worker that is a process of its own: both of its ends.

It has the model and no text: rows of ids go in, logits come out, through a socket for each lane and one for loading.
Nothing is pickled. What its models have in memory is shared with other workers through the page cache. It ends when
the server does, however that ends; when it ends before, `revive` starts another.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import msgspec
import numpy as np

from rankrt.arrays import Float32Array
from rankrt.artifact import Variant
from rankrt.devices import Device
from rankrt.errors import ArtifactError, RankrtError
from rankrt.placement import device_of
from rankrt.planner import Capacity
from rankrt.server.workers import LocalWorker, ModelFiles, Run, RunFailed, WorkerLost

# A worker that ends as soon as it is started is not started again at once, and later each time.
_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 10.0

_logger = logging.getLogger("rankrt.server")


class _Load(msgspec.Struct, frozen=True, tag=True):
    key: str
    folder: str
    variant: Variant
    device: str
    prepare: bool
    gpu_memory_bytes: int | None


class _Unload(msgspec.Struct, frozen=True, tag=True):
    key: str


class _Rows(msgspec.Struct, frozen=True):
    key: str
    ids: bytes
    lengths: list[int]
    passage_starts: list[int]
    is_wide: bool


class _Loaded(msgspec.Struct, frozen=True, tag=True):
    layout: str
    n_threads: int
    n_narrow: int
    longest_row: int | None = None


class _Logits(msgspec.Struct, frozen=True, tag=True):
    logits: bytes


class _Refused(msgspec.Struct, frozen=True, tag=True):
    message: str


_ORDERS = msgspec.msgpack.Decoder(_Load | _Unload)
_ROWS = msgspec.msgpack.Decoder(_Rows)
_ANSWERS: msgspec.msgpack.Decoder[_Loaded | _Logits | _Refused] = msgspec.msgpack.Decoder(_Loaded | _Logits | _Refused)


class ProcessWorker:
    """The server's end."""

    def __init__(self, n_threads: int) -> None:
        self.n_lanes = n_threads
        self.life = 0
        self._models: dict[str, ModelFiles] = {}
        self._lock = threading.RLock()
        self._is_closed = False
        self._start()

    @property
    def pid(self) -> int:
        """The process that runs now, or did last."""
        return self._process.pid

    def load(self, files: ModelFiles) -> Capacity:
        """Load a model."""
        order = _Load(
            key=files.key,
            folder=str(files.folder),
            variant=files.variant,
            device=str(files.device),
            prepare=files.prepare,
            gpu_memory_bytes=files.gpu_memory_bytes,
        )
        with self._lock:
            answer = self._ask(self._control, order)
            if not isinstance(answer, _Loaded):
                raise ArtifactError(answer.message if isinstance(answer, _Refused) else "the worker said nothing")
            self._models[files.key] = files
        return msgspec.convert(answer, Capacity, from_attributes=True)

    def unload(self, key: str) -> None:
        """Release a model."""
        with self._lock:
            self._models.pop(key)
            self._ask(self._control, _Unload(key=key))

    def run(self, lane: int, run: Run) -> Float32Array:
        """Return a logit for each row."""
        rows = _Rows(
            key=run.key,
            ids=np.concatenate(run.rows).tobytes(),
            lengths=[len(row) for row in run.rows],
            passage_starts=list(run.passage_starts),
            is_wide=run.is_wide,
        )
        answer = self._ask(self._lanes[lane], rows)
        if isinstance(answer, _Logits):
            return np.frombuffer(answer.logits, np.float32)
        raise RunFailed(answer.message if isinstance(answer, _Refused) else "the worker answered something else")

    def revive(self, life: int) -> None:
        """Start another process in the place of the one that has ended, and load what it had."""
        with self._lock:
            if self._is_closed or life != self.life:
                return
            self._process.kill()
            _logger.error("worker %d ended with status %s; starting another", self.pid, self._process.wait())
            time.sleep(self._pause())
            self._start()
            for files in list(self._models.values()):
                self.load(files)

    def close(self) -> None:
        """Let the process end, or make it."""
        with self._lock:
            self._is_closed = True
            self._control.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> None:
        pipes = [Pipe() for _ in range(self.n_lanes + 1)]
        theirs = [child.fileno() for _, child in pipes]
        command = [sys.executable, "-m", "rankrt.server.process", *map(str, theirs)]
        self._process = subprocess.Popen(command, pass_fds=theirs, stdin=subprocess.DEVNULL)
        for _, child in pipes:
            child.close()
        # The old ones are closed when the last lane lets go of them: a number must not be given away while it is read.
        self._control, *self._lanes = [ours for ours, _ in pipes]
        self.life += 1
        self._started = time.monotonic()

    def _pause(self) -> float:
        is_short = time.monotonic() - self._started < _SHORT_LIFE_S
        return min(_LONGEST_PAUSE_S, 0.25 * 2**self.life) if is_short and self.life > 1 else 0.0

    def _ask(self, connection: Connection, question: msgspec.Struct) -> _Loaded | _Logits | _Refused:
        life = self.life
        try:
            connection.send_bytes(msgspec.msgpack.encode(question))
            return _ANSWERS.decode(connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerLost(life) from error


def main(descriptors: Sequence[str]) -> None:
    """Be the process's end: load, and run what comes on each lane, until the server hangs up."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)  # they reach the whole group; the server decides
    control, *lanes = [Connection(int(descriptor)) for descriptor in descriptors]
    worker = LocalWorker(len(lanes))
    for i, lane in enumerate(lanes):
        threading.Thread(target=_serve_lane, args=(worker, i, lane), daemon=True).start()
    try:
        while True:
            control.send_bytes(msgspec.msgpack.encode(_obey(worker, _ORDERS.decode(control.recv_bytes()))))
    except (EOFError, OSError):
        os._exit(0)  # the lanes may be in the middle of a run that nobody waits for


def _obey(worker: LocalWorker, order: _Load | _Unload) -> _Loaded | _Refused:
    try:
        if isinstance(order, _Unload):
            worker.unload(order.key)
            return _Loaded(layout="packed", n_threads=worker.n_lanes, n_narrow=worker.n_lanes)
        files = ModelFiles(
            key=order.key,
            folder=Path(order.folder),
            variant=order.variant,
            device=device_of(order.variant, Device.parse(order.device)),
            prepare=order.prepare,
            gpu_memory_bytes=order.gpu_memory_bytes,
        )
        return msgspec.convert(worker.load(files), _Loaded, from_attributes=True)
    except RankrtError as error:
        return _Refused(message=str(error))


def _serve_lane(worker: LocalWorker, lane: int, connection: Connection) -> None:
    try:
        while True:
            rows = _ROWS.decode(connection.recv_bytes())
            connection.send_bytes(msgspec.msgpack.encode(_answer(worker, lane, rows)))
    except (EOFError, OSError):
        return


def _answer(worker: LocalWorker, lane: int, rows: _Rows) -> _Logits | _Refused:
    ids = np.split(np.frombuffer(rows.ids, np.int32), np.cumsum(rows.lengths)[:-1])
    run = Run(key=rows.key, rows=ids, passage_starts=rows.passage_starts, is_wide=rows.is_wide)
    try:
        return _Logits(logits=worker.run(lane, run).tobytes())
    except RankrtError as error:
        return _Refused(message=str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
