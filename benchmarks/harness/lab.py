"""The common part of a run's suites: the model, its text, the systems, and calls in turn."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.harness.conversions import convert
from benchmarks.harness.environments import cache_folder, python_of
from benchmarks.harness.worker import Budget, SystemFailed, Worker
from benchmarks.harness.workloads import Source, Workload
from benchmarks.records.record import Given, Model, System
from benchmarks.records.statistics import percentiles_ms, ratio, spread
from benchmarks.systems import entry_of
from rankrt.arrays import Float32Array
from rankrt.artifact.source import Hub
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint

# The default reference of every drift: fp32, each row alone, so that padding cannot change it.
REFERENCE = "torch-sdpa"
# Threads spin for a while after a call and would slow down the next system. ONNX Runtime's keep a core busy for 40 ms
# after any call. With a pause of 20 ms, a baseline of 20 ms took up to twice as long in the turns of such systems.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 0.3
_MOST_ROUNDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The amount of measuring.

    rounds   the fewest calls of a case
    seconds  the least time of a case
    """

    rounds: int = 3
    seconds: float = 2.0
    budget: Budget
    passages: tuple[int, ...] = (1, 8, 32, 100)
    kinds: tuple[str, ...] = ("short", "mixed", "paragraphs", "512", "8192")
    n_questions: int = 10
    n_processes: tuple[int, ...] = (1, 2, 4)
    artifact: Path | None = None
    servers: dict[str, str] = field(default_factory=dict)
    load_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The result of a case; see `record.Row`."""

    size: dict[str, float]
    metrics: dict[str, float | None]
    seconds: tuple[float, ...] = ()
    baseline_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A possible measurement: its name, how text is given, and the call that makes it."""

    name: str
    given: Given = "as shipped"
    measure: Callable[[], Measured]


class Lab:
    """One run's model, text and settings, and the workers that are loaded: the baseline's and one other's."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: Source,
        settings: Settings,
        baseline: str,
        reference: str = REFERENCE,
    ) -> None:
        self.checkpoint = checkpoint
        self.source = source
        self.settings = settings
        self.baseline = baseline
        self.reference = reference
        self.systems: dict[str, System] = {}
        self._failures: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        self._rates: dict[tuple[str, Given], float] = {}
        self._best: dict[tuple[str, str], int | None] = {}
        self._references: dict[str, Float32Array] = {}
        self._kept: dict[str, list[Float32Array]] = {}
        self._ceilings: dict[tuple[str, int], float] = {}

    @cached_property
    def model(self) -> Model:
        """The checkpoint's name in the record."""
        weights = self.checkpoint.weights
        return Model(
            name=self.checkpoint.name,
            sha256=sha256_of_files(self.checkpoint.folder),
            architecture=self.checkpoint.architecture,
            n_parameters=sum(int(np.prod(weights.shape(name))) for name in weights.names),
            max_length=self.checkpoint.max_length,
        )

    def start(self, system: str, budget: Budget | None = None) -> Worker:
        """Load a system in a process of its own. The caller closes it. Raises SystemFailed with the reason."""
        budget = budget or self.settings.budget
        entry = entry_of(system, budget.device)
        python = python_of(entry.environment) if entry.environment else Path(sys.executable)
        log = cache_folder() / "logs" / f"{system.replace(':', '.')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        worker = Worker(system, str(self.path_for(system)), budget, log, str(python))
        self.systems[system] = System(versions=worker.versions, conversion=entry.given or None)
        return worker

    def path_for(self, system: str) -> Path:
        """Return the files that a system loads; convert them the first time."""
        given = entry_of(system, self.settings.budget.device).given
        if self.settings.artifact and given.startswith("rankrt"):
            return self.settings.artifact
        if not given:
            return self.checkpoint.folder
        return convert(given, self.checkpoint.folder, self.model.sha256, self.settings.budget)

    def worker(self, system: str) -> Worker:
        """Return a system's worker. Close all others but the baseline's first, because memory is for two models."""
        if system in self._failures:
            raise SystemFailed(self._failures[system])
        if system not in self._workers:
            for other in self._workers.keys() - {self.baseline}:
                self._workers.pop(other).close()
            try:
                self._workers[system] = self.start(system)
            except SystemFailed as failure:
                self._failures[system] = str(failure)
                raise
        return self._workers[system]

    def call(self, system: str, workload: Workload, batch_size: int | None = None) -> tuple[float, Float32Array]:
        """Score a workload once; return the seconds and the logits. A system that fails is loaded again next time."""
        try:
            answer = self.worker(system).call(workload.query, workload.passages, workload.max_length, batch_size)
        except SystemFailed:
            if worker := self._workers.pop(system, None):
                worker.close()
            raise
        time.sleep(min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, answer.seconds)))
        return answer.seconds, np.array(answer.scores, np.float32)

    def time(self, system: str, workload: Workload, given: Given = "as shipped") -> Measured:
        """Time a system and the baseline in turn, after a call of each with the same shapes; add the drift.

        Raises SystemFailed if it fails, or would take longer than the limit of a call.
        """
        self._check_duration(system, workload, given)
        batch_size = self._batch_size(system, workload) if given == "at its best" else None
        logits = self.call(system, workload, batch_size)[1]
        self._call_baseline(workload)
        seconds, baseline_seconds = self._rounds(system, workload, batch_size)
        self._rates[system, given] = workload.n_tokens / min(seconds)
        chosen = {} if given == "as shipped" else {"batch_size": float(batch_size or 0)}
        return Measured(
            size=workload.size | {"max_length": workload.max_length} | chosen,
            metrics=self._metrics(seconds, baseline_seconds, workload) | self.drift(workload, logits),
            seconds=tuple(seconds),
            baseline_seconds=tuple(baseline_seconds),
        )

    def drift(self, workload: Workload, logits: Float32Array) -> dict[str, float | None]:
        """Return the distance of logits from PyTorch's, row by row; None without PyTorch."""
        try:
            difference = np.abs(logits - self.reference_logits(workload))
        except SystemFailed:
            return {"max_drift": None, "mean_drift": None}
        return {"max_drift": float(difference.max()), "mean_drift": float(difference.mean())}

    def reference_logits(self, workload: Workload) -> Float32Array:
        """Return the reference's logits, each row alone."""
        if workload.name not in self._references:
            self._check_duration(self.reference, workload, "as shipped")
            self._references[workload.name] = self.call(self.reference, workload, batch_size=1)[1]
        return self._references[workload.name]

    def scores(self, system: str, workloads: Sequence[Workload], batch_size: int | None = None) -> list[Float32Array]:
        """Return a system's logits for many workloads; the reference's are kept."""
        key = "|".join([system, str(batch_size), *(workload.name for workload in workloads)])
        if key not in self._kept:
            found = [self.call(system, workload, batch_size)[1] for workload in workloads]
            if system != self.reference:
                return found
            self._kept[key] = found
        return self._kept[key]

    def ceiling(self, name: str, n_tokens: int) -> float:
        """Return a rate of the machine, measured once a run: GFLOP/s or GB/s, see systems/ceilings.py."""
        if (name, n_tokens) not in self._ceilings:
            with self.start(name) as worker:
                self._ceilings[name, n_tokens] = max(worker.call("", [], n_tokens).scores)
        return self._ceilings[name, n_tokens]

    def with_threads(self, n_threads: int) -> Budget:
        """Return the budget with that many threads, pinned to as many CPUs."""
        budget = self.settings.budget
        return replace(budget, n_threads=n_threads, cpus=budget.cpus[:n_threads])

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _rounds(self, system: str, workload: Workload, batch_size: int | None) -> tuple[list[float], list[float]]:
        seconds: list[float] = []
        baseline_seconds: list[float] = []
        end = time.perf_counter() + self.settings.seconds
        while len(seconds) < self.settings.rounds or (time.perf_counter() < end and len(seconds) < _MOST_ROUNDS):
            seconds.append(self.call(system, workload, batch_size)[0])
            is_baseline = system == self.baseline and batch_size is None
            baseline_seconds.append(seconds[-1] if is_baseline else self._call_baseline(workload))
        return seconds, baseline_seconds

    def _call_baseline(self, workload: Workload) -> float:
        """Time the baseline, as shipped. Raises SystemFailed with its name, because its failure is not the system's."""
        try:
            return self.call(self.baseline, workload)[0]
        except SystemFailed as failure:
            raise SystemFailed(f"the baseline, {self.baseline}: {failure}") from None

    def _metrics(
        self, seconds: Sequence[float], baseline_seconds: Sequence[float], workload: Workload
    ) -> dict[str, float | None]:
        middle = float(np.median(seconds))
        return percentiles_ms(seconds) | {
            "spread": spread(seconds),
            "times_baseline": ratio(seconds, baseline_seconds),
            "tokens_per_s": workload.n_tokens / middle,
            "tokens_per_s_per_core": workload.n_tokens / middle / self.settings.budget.n_threads,
            "pairs_per_s": len(workload.passages) / middle,
        }

    def _batch_size(self, system: str, workload: Workload) -> int | None:
        """Return the fastest batch size. Each is tried once, after a warm-up of one passage."""
        sizes = [n for n in entry_of(system).batch_sizes if n == 1 or n <= len(workload.passages)]
        if (system, workload.name) not in self._best and sizes:
            self.call(system, replace(workload, passages=workload.passages[:1]), 1)
            tried = {n: self.call(system, workload, n)[0] for n in sizes}
            self._best[system, workload.name] = min(tried, key=tried.__getitem__)
        return self._best.get((system, workload.name))

    def _check_duration(self, system: str, workload: Workload, given: Given) -> None:
        limit = self.settings.budget.call_s
        if rate := self._rates.get((system, given)):
            foreseen = workload.n_tokens / rate
            if foreseen > limit:
                raise SystemFailed(f"about {foreseen:.0f} s a call, the limit is {limit:g} s (--call-limit)")


def open_model(source: str) -> Checkpoint:
    """Open the checkpoint that a run measures. Raises CheckpointError."""
    return open_checkpoint(source, Hub())


def sha256_of_files(folder: Path) -> str:
    """Return a hash of the files in a checkpoint's folder: of their names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def pinned_cpus(n_threads: int) -> tuple[int, ...]:
    """Return one CPU for each thread, of different cores as far as there are enough."""
    allowed = sorted(os.sched_getaffinity(0))
    first_of_core = {_siblings(cpu): cpu for cpu in reversed(allowed)}
    ordered = sorted(first_of_core.values()) + [cpu for cpu in allowed if cpu not in first_of_core.values()]
    return tuple(ordered[:n_threads])


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(cpu)
