"""A process with one system, which speaks lines of JSON over a pipe, within limits of time.

    python -m benchmarks.harness.worker SYSTEM MODEL N_THREADS CPUS DEVICE

A request is {"query", "passages", "max_length", "batch_size"}, and an answer {"seconds", "scores"}. The first line out
is {"versions"}. Only the call itself is timed. Imports the standard library only, because it runs in every system's
environment.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.systems import System, open_system

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Answer:
    """The time of a call, and the scores."""

    seconds: float
    scores: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The resources of a system: threads, their CPUs, a device, seconds for loading and for a call."""

    n_threads: int
    cpus: tuple[int, ...]
    device: str = "cpu"
    load_s: float = 300.0
    call_s: float = 120.0


class SystemFailed(Exception):
    """A system failed to load or to answer. The message is the reason in its row."""


class Worker:
    """The parent's end of such a process. `log` is the file for its output."""

    def __init__(self, system: str, model: str, budget: Budget, log: Path, python: str = sys.executable) -> None:
        self.system = system
        self.log = log
        self._budget = budget
        what = [system, model, str(budget.n_threads), ",".join(map(str, budget.cpus)), budget.device]
        command = [python, "-m", "benchmarks.harness.worker", *what]
        started = time.perf_counter()
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                cwd=ROOT,
                env=environment(budget.n_threads),
                start_new_session=True,  # so that Ctrl-C reaches the parent only, and a kill also reaches its children
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.versions: dict[str, str] = self._read(budget.load_s, "loading")["versions"]
        self.load_s = time.perf_counter() - started

    @property
    def pid(self) -> int:
        """The process, for measuring its memory."""
        return self._process.pid

    def call(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> Answer:
        """Score passages. Raises SystemFailed if the process ends or is too slow, and ends it."""
        request = {"query": query, "passages": list(passages), "max_length": max_length, "batch_size": batch_size}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        return Answer(**self._read(self._budget.call_s, "a call"))

    def close(self) -> None:
        """Let the process end, or kill it."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._listener.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put("")

    def _read(self, limit_s: float, what: str) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            os.killpg(self._process.pid, signal.SIGKILL)
            self.close()
            raise SystemFailed(f"{what} took longer than {limit_s:g} s") from None
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> SystemFailed:
        self.close()
        return SystemFailed(f"{last_words(self.log)} (status {self._process.returncode})")


def last_words(log: Path) -> str:
    """Return the last line of a process, which says what went wrong. After a kill by the kernel it may be missing."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"


def environment(n_threads: int) -> dict[str, str]:
    """Return an environment with the same budget for every library, and without access to a model hub."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    alone = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return os.environ | dict.fromkeys(names, str(n_threads)) | alone


def main() -> None:
    name, model, n_threads, cpus, device = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cpus.split(",")))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # output of libraries is not an answer
        system = open_system(name, model, int(n_threads), device)
        print(json.dumps({"versions": system.versions}), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            started = time.perf_counter()
            scores = _sorted_by_length(system, **request) if request["batch_size"] else system.score(**request)
            seconds = time.perf_counter() - started
            print(json.dumps({"seconds": seconds, "scores": scores}), file=answers, flush=True)


def _sorted_by_length(
    system: System, query: str, passages: Sequence[str], max_length: int, batch_size: int
) -> list[float]:
    """Do what a system's best user does before a batch size is of any use."""
    order = sorted(range(len(passages)), key=lambda i: len(passages[i]))
    scores = system.score(query, [passages[i] for i in order], max_length, batch_size)
    by_index = dict(zip(order, scores, strict=True))
    return [by_index[i] for i in range(len(passages))]


if __name__ == "__main__":
    main()
