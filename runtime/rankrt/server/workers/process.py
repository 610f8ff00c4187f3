"""A worker that is a process of its own: both of its ends.

It has the model and no text: rows of ids go in, logits come out, through a socket for each lane and one for loading.
Nothing is pickled. What its models have in memory is shared with other workers through the page cache. It ends when
the server does, however that ends. When it ends before, or does not answer in time, its keeper starts another one,
which counts only when it has loaded all models.
"""

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact, Manifest, Variant
from rankrt.backends.planner import Capacity
from rankrt.errors import ArtifactError, RankrtError
from rankrt.host.child import child_command
from rankrt.host.device import Device
from rankrt.options import LoadOptions
from rankrt.server.workers.local import ArtifactReplaced, LocalWorker, ModelFiles, Run, RunFailed, WorkerLost

# A worker that ends as soon as it is started is not started again at once, and later each time.
_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 10.0
# Preparing a model of 5 GB takes a minute, and several processes may wait for the one that does it.
_LONGEST_LOAD_S = 3600.0
# What a process takes to end, at most, once its sockets are closed; longer only if a disk hangs.
_END_S = 1.0
# The kernel's choice when memory is short should be a worker, which is started again, and not the server.
_OOM_SCORE_MORE = 200

_logger = logging.getLogger("rankrt.server")


class _Load(msgspec.Struct, frozen=True, tag=True):
    key: str
    folder: str
    identity: str
    manifest: Manifest
    variant: Variant
    device: Device
    options: dict[str, Any]


class _Unload(msgspec.Struct, frozen=True, tag=True):
    key: str


class _Rows(msgspec.Struct, frozen=True):
    key: str
    ids: bytes
    lengths: list[int]
    passage_starts: list[int]
    exits: list[int]
    is_wide: bool


class _Loaded(msgspec.Struct, frozen=True, tag=True):
    capacity: Capacity


class _Unloaded(msgspec.Struct, frozen=True, tag=True):
    pass


class _Logits(msgspec.Struct, frozen=True, tag=True):
    logits: bytes


class _Refused(msgspec.Struct, frozen=True, tag=True):
    message: str
    is_replaced: bool = False


_ORDERS = msgspec.msgpack.Decoder(_Load | _Unload)
_ROWS = msgspec.msgpack.Decoder(_Rows)
_Answer: TypeAlias = _Loaded | _Unloaded | _Logits | _Refused
_ANSWERS: msgspec.msgpack.Decoder[_Answer] = msgspec.msgpack.Decoder(_Answer)


@dataclass(eq=False, slots=True, kw_only=True)
class _Child:
    """One process, the connections to it, and the models that it has loaded; lost when it did not answer."""

    process: subprocess.Popen[bytes]
    control: Connection
    lanes: Sequence[Connection]
    started: float = field(default_factory=time.monotonic)
    loaded: set[str] = field(default_factory=set)
    is_lost: bool = False


class ProcessWorker:
    """The server's end. The process is started when the first model is loaded."""

    def __init__(self, n_threads: int, *, longest_run_s: float = 120.0) -> None:
        """A process that does not answer a run within `longest_run_s` is taken for hung and ended."""
        self.n_lanes = n_threads
        self.n_restarts = 0
        self._longest_run_s = longest_run_s
        self._models: dict[str, ModelFiles] = {}
        self._child: _Child | None = None
        self._outage: RankrtError | None = None
        self._watchers: list[Callable[[], None]] = []
        self._control = threading.RLock()  # held by the thread that starts a process or gives it an order
        self._ending = threading.Lock()  # held to note an end, and never for long
        self._hurried = threading.Event()
        self._is_closed = False
        self._keeper = threading.Thread(target=self._keep, name="keeper of a worker", daemon=True)

    @property
    def pid(self) -> int:
        """The process that runs now, or did last; 0 before the first."""
        return self._child.process.pid if self._child else 0

    @property
    def outage(self) -> RankrtError | None:
        """Why it cannot score now."""
        return self._outage

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call this after each change of `outage`, and after each attempt to come back that failed."""
        self._watchers.append(on_change)

    def load(self, files: ModelFiles) -> Capacity:
        """Load a model."""
        with self._control:
            capacity = self._load(self._running(), files)
            self._models[files.key] = files
        return capacity

    def unload(self, key: str) -> None:
        """Release a model."""
        with self._control:
            self._models.pop(key, None)
            if (child := self._child) and key in child.loaded:
                child.loaded.discard(key)
                with contextlib.suppress(WorkerLost):  # then it is released, too
                    self._ask(child, child.control, _Unload(key=key))
        self.hurry()  # it may be the one that kept this worker away

    def can_run(self, key: str) -> bool:
        """Tell whether that model is loaded and can be run now."""
        return (child := self._child) is not None and not child.is_lost and key in child.loaded

    def run(self, lane: int, run: Run) -> Float32Array:
        """Return a logit for each row."""
        if (child := self._child) is None:
            raise WorkerLost("the process that scores was not started yet")
        rows = _Rows(
            key=run.key,
            ids=np.concatenate(run.rows).tobytes(),
            lengths=[len(row) for row in run.rows],
            passage_starts=list(run.passage_starts),
            exits=list(run.exits),
            is_wide=run.is_wide,
        )
        answer = self._ask(child, child.lanes[lane], rows)
        if isinstance(answer, _Logits):
            return np.frombuffer(answer.logits, np.float32)
        raise RunFailed(_said(answer))

    def hurry(self) -> None:
        """Try to come back at once."""
        self._hurried.set()

    def close(self) -> None:
        """End the process."""
        self._is_closed = True
        self._hurried.set()
        if self._child:
            self._child.process.kill()  # what waits for its answer lets go of the lock
        with self._control:
            if self._child:
                self._child.process.kill()
                self._child.process.wait()
        if self._keeper.is_alive():
            self._keeper.join()

    def _running(self) -> _Child:
        """Return the process, started if there is none."""
        if self._is_closed:
            raise WorkerLost("the server is going down")
        child = self._child
        if child is None or child.is_lost or child.process.poll() is not None:
            if child is not None:
                self.n_restarts += 1
                self._note_end(child, "has ended")
            self._child = child = self._start()
            if not self._keeper.is_alive():
                self._keeper.start()
        return child

    def _start(self) -> _Child:
        limits = [_LONGEST_LOAD_S] + [self._longest_run_s] * self.n_lanes
        pairs = [_pair(limit_s) for limit_s in limits]
        theirs = [end.fileno() for _, end in pairs]
        try:
            process = subprocess.Popen(
                child_command("rankrt.server.workers.process", *map(str, theirs)),
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
            )
        finally:
            for _, end in pairs:
                end.close()
        # The old ones are closed when the last lane lets go of them: a number must not be given away while it is read.
        control, *lanes = [ours for ours, _ in pairs]
        return _Child(process=process, control=control, lanes=lanes)

    def _load(self, child: _Child, files: ModelFiles) -> Capacity:
        order = _Load(
            key=files.key,
            folder=str(files.artifact.folder),
            identity=files.artifact.identity,
            manifest=files.artifact.manifest,
            variant=files.variant,
            device=files.device,
            options={option.name: getattr(files.options, option.name) for option in fields(LoadOptions)},
        )
        answer = self._ask(child, child.control, order)
        if isinstance(answer, _Loaded):
            child.loaded.add(files.key)
            return answer.capacity
        is_replaced = isinstance(answer, _Refused) and answer.is_replaced
        raise (ArtifactReplaced if is_replaced else ArtifactError)(_said(answer))

    def _ask(self, child: _Child, connection: Connection, question: msgspec.Struct) -> _Answer:
        """Return what the process answers. Raises WorkerLost if it has ended, or ends it if it takes too long."""
        try:
            connection.send_bytes(msgspec.msgpack.encode(question, enc_hook=str))  # a path is sent as text
            return _ANSWERS.decode(connection.recv_bytes())
        except BlockingIOError:
            limit_s = _LONGEST_LOAD_S if connection is child.control else self._longest_run_s
            how = f"did not answer within {limit_s:.0f} s"
            child.process.kill()
        except (EOFError, OSError):
            child.process.kill()  # in case that only one of its threads has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_END_S)
            how = _how_it_ended(child.process.returncode)
        # Two errors: one that is raised leads to this frame, and keeps the connections open as long as it is kept.
        self._note_end(child, how)
        raise WorkerLost(f"the process that scores {how}")

    def _note_end(self, child: _Child, how: str) -> None:
        """Stop all runs on a process that has ended, until its keeper has started another."""
        child.is_lost = True
        with self._ending:
            if child is not self._child or self._outage is not None:
                return
            self._outage = WorkerLost(f"the process that scores {how}")
        self._tell()

    def _tell(self) -> None:
        for on_change in self._watchers:
            on_change()

    def _keep(self) -> None:
        """Start another process whenever one ends, until it has loaded all models; later each time that fails."""
        n_failures = 0
        while (child := self._child) is not None:
            end = _how_it_ended(child.process.wait())
            if self._is_closed:
                return
            self._note_end(child, end)
            _logger.error("worker %d %s; starting another", child.process.pid, end)
            n_failures = n_failures + 1 if time.monotonic() - child.started < _SHORT_LIFE_S else 0
            self._pause(n_failures)
            while not self._is_closed and not self._come_back():
                n_failures += 1
                self._pause(n_failures)

    def _come_back(self) -> bool:
        """Load what a process lacks; tell whether it can score then."""
        try:
            with self._control:
                child = self._running()
                for key, files in self._models.items():
                    if key not in child.loaded:
                        self._load(child, files)
                self._outage = None
        except Exception as error:  # noqa: BLE001  whatever it is, the keeper must not end
            unexpected = WorkerLost(f"{type(error).__name__}: {error}")
            self._outage = copy(error) if isinstance(error, RankrtError) else unexpected  # without its frames, see _ask
            if not self._is_closed:
                _logger.error("a worker cannot score: %s; trying again", self._outage)
        self._tell()
        return self._outage is None

    def _pause(self, n_failures: int) -> None:
        if n_failures:
            self._hurried.wait(min(_LONGEST_PAUSE_S, 0.125 * 2 ** min(n_failures, 10)))
        self._hurried.clear()


def _said(answer: _Answer) -> str:
    return answer.message if isinstance(answer, _Refused) else "the worker answered something else"


def _pair(limit_s: float) -> tuple[Connection, socket.socket]:
    """Return two ends of a connection, of which ours raises BlockingIOError when it has waited so long."""
    ours, theirs = socket.socketpair()
    limit = struct.pack("@ll", int(limit_s), int(limit_s % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        ours.setsockopt(socket.SOL_SOCKET, option, limit)
    return Connection(ours.detach()), theirs


def _how_it_ended(status: int | None) -> str:
    """Return the end of a sentence about a process, with the usual reason for its signal."""
    if status is None:
        return "has ended"
    if status >= 0:
        return f"ended with status {status}"
    number = signal.Signals(-status)
    reasons = {
        signal.SIGKILL: ", perhaps because memory was short",
        signal.SIGBUS: ", because a file that it had mapped was cut or could not be read",
    }
    return f"was ended by {number.name}{reasons.get(number, '')}"


def main(descriptors: Sequence[str]) -> None:
    """Be the process's end: load, and run what comes on each lane, until the server hangs up."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)  # they reach the whole group; the server decides
    _offer_to_the_oom_killer()
    control, *lanes = [Connection(int(descriptor)) for descriptor in descriptors]
    worker = LocalWorker(len(lanes))
    for i, lane in enumerate(lanes):
        threading.Thread(target=_serve_lane, args=(worker, i, lane), daemon=True).start()
    try:
        while True:
            control.send_bytes(msgspec.msgpack.encode(_obey(worker, _ORDERS.decode(control.recv_bytes()))))
    except (EOFError, OSError):
        os._exit(0)  # the lanes may be in the middle of a run that is not waited for


def _offer_to_the_oom_killer() -> None:
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # not on Linux
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE_MORE)))


def _obey(worker: LocalWorker, order: _Load | _Unload) -> _Loaded | _Unloaded | _Refused:
    try:
        if isinstance(order, _Unload):
            worker.unload(order.key)
            return _Unloaded()
        files = ModelFiles(
            key=order.key,
            artifact=Artifact(folder=Path(order.folder), manifest=order.manifest, identity=order.identity),
            variant=order.variant,
            device=order.device,
            options=LoadOptions(**order.options),
        )
        return _Loaded(capacity=worker.load(files))
    except RankrtError as error:
        return _Refused(message=str(error), is_replaced=isinstance(error, ArtifactReplaced))
    except Exception as error:  # noqa: BLE001  no right, no memory, no threads: the server says it and tries again
        return _Refused(message=f"{type(error).__name__}: {error}")


def _serve_lane(worker: LocalWorker, lane: int, connection: Connection) -> None:
    """Run what comes; whatever ends this thread, the connection ends too, and the server does not wait for it."""
    with connection, contextlib.suppress(EOFError, OSError):
        while True:
            rows = _ROWS.decode(connection.recv_bytes())
            connection.send_bytes(msgspec.msgpack.encode(_answer(worker, lane, rows)))


def _answer(worker: LocalWorker, lane: int, rows: _Rows) -> _Logits | _Refused:
    ids = np.split(np.frombuffer(rows.ids, np.int32), np.cumsum(rows.lengths)[:-1])
    run = Run(key=rows.key, rows=ids, passage_starts=rows.passage_starts, exits=rows.exits, is_wide=rows.is_wide)
    try:
        return _Logits(logits=worker.run(lane, run).tobytes())
    except RankrtError as error:
        return _Refused(message=str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
