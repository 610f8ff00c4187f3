"""The time to a first score, and the memory of a ready process, alone and beside copies of itself.

A cold start has the model's files removed from the page cache. The libraries' own files stay there. Private memory is
memory that no other process shares. "shared" is the rest of the resident memory. PSS divides shared pages among their
processes, so the sum of PSS is the memory of all processes together.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.harness.lab import Case, Lab, Measured
from benchmarks.harness.processes import memory_mb
from benchmarks.harness.worker import SystemFailed, Worker
from benchmarks.harness.workloads import Workload
from benchmarks.records.record import memory_bytes


def cases(lab: Lab, system: str) -> list[Case]:
    """Return the two starts, then numbers of processes."""
    return [
        Case(name="cold", measure=partial(_cold, lab, system)),
        Case(name="warm", measure=partial(_warm, lab, system)),
        *(Case(name=f"{n} processes", measure=partial(_memory, lab, system, n)) for n in lab.settings.n_processes),
    ]


def _cold(lab: Lab, system: str) -> Measured:
    lab.close()
    if system not in lab.systems:  # one-time work on a host, such as packing weights, is not a cold start
        _first_score(lab, system).close()
    evict(lab.path_for(system))
    with _first_score(lab, system) as worker:
        return _measured([worker.first_score_s])


def _warm(lab: Lab, system: str) -> Measured:
    lab.close()
    seconds = []
    for _ in range(lab.settings.rounds):
        with _first_score(lab, system) as worker:
            seconds.append(worker.first_score_s)
    return _measured(seconds)


def _memory(lab: Lab, system: str, n_processes: int) -> Measured:
    lab.close()
    with ExitStack() as stack:
        workers: list[_Started] = []
        for _ in range(n_processes):
            _check_room(workers)
            workers.append(stack.enter_context(_first_score(lab, system)))
        memory = [memory_mb(worker.pid) for worker in workers]
    names = ("rss", "pss", "private", "shared")
    return Measured(
        size={"n_processes": n_processes},
        metrics={f"{name}_mb": sum(of_one[name] for of_one in memory) for name in names},
    )


def _check_room(workers: Sequence["_Started"]) -> None:
    """Raise SystemFailed if one more process like the last may not fit."""
    if workers:
        needed, free = memory_mb(workers[-1].pid)["rss"], memory_bytes("MemAvailable") / 1e6
        if needed > 0.8 * free:
            raise SystemFailed(f"{len(workers)} processes leave {free:.0f} MB, one more may take {needed:.0f} MB")


class _Started:
    """A worker that has scored once; first_score_s counts from before its process began."""

    def __init__(self, worker: Worker, workload: Workload) -> None:
        self._worker = worker
        try:
            answer = worker.call(workload.query, workload.passages, workload.max_length)
        except SystemFailed:
            worker.close()
            raise
        self.first_score_s = worker.load_s + answer.seconds
        self.pid = worker.pid

    def close(self) -> None:
        self._worker.close()

    def __enter__(self) -> "_Started":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def _first_score(lab: Lab, system: str) -> _Started:
    workload = lab.source.make("paragraphs", 1)
    return _Started(lab.start(system), workload)


def _measured(seconds: Sequence[float]) -> Measured:
    return Measured(size={}, metrics={"first_score_s": median(seconds)}, seconds=tuple(seconds))


def evict(model: Path) -> None:
    """Drop a model's files from the page cache, after writing changes to the disk."""
    for path in model.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
