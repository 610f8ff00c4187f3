"""How time grows with the work and shrinks with threads: rows of a length, rows at once, threads."""

from collections.abc import Iterator
from functools import partial

from benchmarks.harness.lab import Case, Lab, Measured
from benchmarks.harness.worker import Worker
from benchmarks.harness.workloads import Workload
from benchmarks.records.statistics import percentiles_ms, spread

_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
_N_ROWS = (1, 2, 4, 8, 16)
_ROW_TOKENS = 128
# The first calls of a process are slow with any number of threads. The tiny model's took 7.9 ms, later ones 4.5 ms.
_WARM_S = 0.5


def cases(lab: Lab, system: str) -> list[Case]:
    """Return one axis after the other."""
    return [*_lengths(lab, system), *_batches(lab, system), *_threads(lab, system)]


def _lengths(lab: Lab, system: str) -> Iterator[Case]:
    for n_tokens in _LENGTHS:
        if n_tokens <= lab.checkpoint.max_length:
            yield Case(name=f"length {n_tokens}", measure=partial(_time_process, lab, system, n_tokens, 1))


def _batches(lab: Lab, system: str) -> Iterator[Case]:
    for n_rows in _N_ROWS:
        yield Case(name=f"rows {n_rows}", measure=partial(_time_process, lab, system, _ROW_TOKENS, n_rows))


def _threads(lab: Lab, system: str) -> Iterator[Case]:
    for n_threads in range(1, lab.settings.budget.n_threads + 1):
        yield Case(name=f"threads {n_threads}", measure=partial(_with_threads, lab, system, n_threads))


def _time_process(lab: Lab, system: str, n_tokens: int, n_rows: int) -> Measured:
    return lab.time(system, lab.source.make(str(n_tokens), n_rows))


def _with_threads(lab: Lab, system: str, n_threads: int) -> Measured:
    """Time a process of its own, because most libraries learn their number of threads once."""
    workload = lab.source.make(str(_ROW_TOKENS), _N_ROWS[-2])
    with lab.start(system, lab.with_threads(n_threads)) as worker:
        _calls(worker, workload, 1, _WARM_S)
        seconds = _calls(worker, workload, lab.settings.rounds, lab.settings.seconds)
    metrics = percentiles_ms(seconds) | {"spread": spread(seconds)}
    return Measured(size=workload.size | {"n_threads": n_threads}, metrics=metrics, seconds=seconds)


def _calls(worker: Worker, workload: Workload, n: int, seconds: float) -> tuple[float, ...]:
    """Call at least so often and so long; return the seconds of each call."""
    found: list[float] = []
    while len(found) < n or sum(found) < seconds:
        found.append(worker.call(workload.query, workload.passages, workload.max_length).seconds)
    return tuple(found)
