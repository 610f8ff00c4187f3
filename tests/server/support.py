"""A server of tiny artifacts on a port of its own, and the parts of it that tests look at alone."""

import asyncio
import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from rankrt.backends.planner import Capacity
from rankrt.errors import RankrtError
from rankrt.host.device import Device
from rankrt.options import LoadOptions
from rankrt.server.scheduling.queue import Job
from rankrt.server.workers.local import ModelFiles, Run, ServedModel, WorkerLost
from rankrt.text.pairs import Encoded

CAPACITY = Capacity(layout="packed", n_threads=2, n_narrow=2)


def model(key: str = "0", capacity: Capacity = CAPACITY) -> ServedModel:
    return ServedModel(key=key, salt=key.encode(), capacity=capacity)


def rows_of(*lengths: int, first_id: int = 5) -> Encoded:
    """Rows of these lengths; no two have the same ids."""
    rows = [np.arange(length, dtype=np.int32) + first_id * 1000 + i * 100_000 for i, length in enumerate(lengths)]
    n = len(lengths)
    return Encoded(
        ids=np.concatenate(rows),
        offsets=np.cumsum([0, *lengths]),
        passage_starts=np.ones(n, np.int64),
        pair_of_row=np.arange(n),
        spans=np.zeros((n, 2), np.int64),
        truncated=np.zeros(n, bool),
        query_truncated=np.zeros(n, bool),
    )


def model_files(artifact: Artifact, key: str = "0", *, prepare: bool = True) -> ModelFiles:
    variant = artifact.manifest.variants[0]
    return ModelFiles(
        key=key, artifact=artifact, variant=variant, device=Device("cpu"), options=LoadOptions(prepare=prepare)
    )


def run_of(*rows: list[int], key: str = "0", is_wide: bool = False) -> Run:
    ids = [np.array(row, np.int32) for row in rows]
    return Run(key=key, rows=ids, passage_starts=[1] * len(rows), is_wide=is_wide)


@dataclass
class FakeWorker:
    """Answers the length of each row, one run at a time when it is told to, and remembers what it ran."""

    n_lanes: int = 1
    answer: Callable[[Run], Float32Array] = lambda run: np.array([len(row) for row in run.rows], np.float32)
    runs: list[Run] = field(default_factory=list)
    outage: RankrtError | None = None
    on_change: Callable[[], None] = lambda: None
    allowed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10**9))
    n_running: int = 0
    most_running: int = 0

    def load(self, files: ModelFiles) -> Capacity:
        return CAPACITY

    def unload(self, key: str) -> None:
        pass

    def watch(self, on_change: Callable[[], None]) -> None:
        self.on_change = on_change

    def can_run(self, key: str) -> bool:
        return self.outage is None

    def lose(self, reason: str) -> WorkerLost:
        """Be away from now on."""
        self.outage = WorkerLost(reason)
        return self.outage

    def come_back(self) -> None:
        self.outage = None
        self.on_change()

    def run(self, lane: int, run: Run) -> Float32Array:
        self.n_running += 1
        self.most_running = max(self.most_running, self.n_running)
        self.allowed.acquire()
        self.runs.append(run)
        self.n_running -= 1
        return self.answer(run)

    def hurry(self) -> None:
        pass

    def close(self) -> None:
        pass


class Waiting:
    """A job, and when something happened to it."""

    def __init__(self, served: ServedModel, **fields: Any) -> None:
        self._changed = threading.Event()
        self.job = Job(model=served, notify=self._changed.set, **fields)

    def logits(self) -> list[float]:
        """Wait until the job is done and return its logits. Raises its error."""
        limit = time.monotonic() + 10
        while self.job.n_left and self.job.error is None:
            assert self._changed.wait(limit - time.monotonic()), "the job was not finished"
            self._changed.clear()
        if self.job.error is not None:
            raise self.job.error
        return self.job.logits


@contextlib.contextmanager
def serving(*folders: Path | str, **changes: Any) -> Iterator[str]:
    """Serve artifacts in a thread, on this process's own lanes; yield the address."""
    with serving_with_service(*folders, **changes) as (address, _):
        yield address


@contextlib.contextmanager
def serving_with_service(*folders: Path | str, **changes: Any) -> Iterator[tuple[str, Any]]:
    """Serve artifacts as `rankrt serve` does, and yield the service too. `tls` is a certificate and its key."""
    import uvicorn

    from rankrt.server.http.app import App
    from rankrt.server.http.connections import Connection, Gate, Loop, listen
    from rankrt.server.models import Served
    from rankrt.server.service import Service, Settings

    tracer, tls, drain_s = changes.pop("tracer", None), changes.pop("tls", (None, None)), changes.pop("drain_s", None)
    settings = Settings(models=[Served.parse(str(f)) for f in folders], **{"n_workers": 0, "n_threads": 2, **changes})

    class InLoop(Service):
        """A service that says where it runs."""

        def start(self) -> None:
            self.loop = asyncio.get_running_loop()
            super().start()

    service = InLoop(settings, tracer=tracer)
    service.gate = gate = Gate(settings.limits.max_connections, greets=tls[0] is None)  # type: ignore[attr-defined]
    config = uvicorn.Config(
        App(service).starlette(),
        http=partial(Connection, gate=gate, limits=settings.limits),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=settings.limits.max_header_bytes,
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        ssl_certfile=tls[0],
        ssl_keyfile=tls[1],
    )
    server = uvicorn.Server(config)
    (listener,) = listen("127.0.0.1", 0, gate)

    def run() -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: server.started and (service.state == "ready" or service.error is not None))
        scheme = "http" if tls[0] is None else "https"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
        gate.close()


def certificate_in(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and its key into a new folder."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder.mkdir()
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def reload(service: Any) -> None:
    """Reload in the server's own loop, as SIGHUP does, and wait for it."""
    asyncio.run_coroutine_threadsafe(service.reload(), service.loop).result(20)


def wait_until(is_done: Callable[[], bool], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)
