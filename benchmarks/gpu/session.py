"""Stages in order of worth within a budget of time, and the record that is written after each of them.

A stage yields lines, which are recorded and said at once. One that fails, or whose time is up, keeps the lines that it
has, and the next one runs. A stage ends by its share of the budget, counted from the start: what one leaves, the next
ones have.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.lines import Figure, Line
from benchmarks.gpu.report import report
from benchmarks.gpu.subject import Subject

RESULTS, REPORT = "results.json", "report.md"
# Of a line that is said; the record has all of it.
_MOST_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the session.

    place  module:function, imported when the stage begins; it takes the subject and yields lines
    share  of the budget; only the ratios to other shares count
    """

    place: str
    share: float


STAGES: Mapping[str, Stage] = {
    "machine": Stage(place="benchmarks.gpu.machine:machine", share=4),
    "tiny": Stage(place="benchmarks.gpu.parity:tiny", share=8),
    "make": Stage(place="benchmarks.gpu.subject:make", share=20),
    "parity": Stage(place="benchmarks.gpu.parity:parity", share=6),
    "speed": Stage(place="benchmarks.gpu.speed:speed", share=8),
    "peers": Stage(place="benchmarks.gpu.peers:peers", share=8),
    "texts": Stage(place="benchmarks.gpu.texts:texts", share=8),
    "compiled": Stage(place="benchmarks.gpu.peers:compiled", share=14),
    "kernels": Stage(place="benchmarks.gpu.kernels:kernels", share=4),
    "memory": Stage(place="benchmarks.gpu.memory:memory", share=6),
    "sweep": Stage(place="benchmarks.gpu.speed:sweep", share=8),
    "decoders": Stage(place="benchmarks.gpu.decoders:decoders", share=12),
    "graphs": Stage(place="benchmarks.gpu.graphs:graphs", share=3),
    "served": Stage(place="benchmarks.gpu.served:served", share=10),
}


class OutOfTime(BaseException):
    """A stage's time is up. It is not an Exception, so no library takes it for a failure of its own."""


class Session:
    """A folder with the record of a session. Stages that were measured there before are kept until they run again."""

    def __init__(self, folder: Path, subject: Subject, conditions: Mapping[str, Figure]) -> None:
        self._folder, self._subject, self._began = folder, subject, time.monotonic()
        self.record: dict[str, Any] = {"benchmark": "gpu", "conditions": dict(conditions), "stages": {}}
        results = folder / RESULTS
        if results.exists() and (earlier := json.loads(results.read_text()))["conditions"] == self.record["conditions"]:
            self.record = earlier

    def run(self, stages: Mapping[str, Stage], budget_s: float) -> None:
        """Run stages in their order, and write the record and the report after each."""
        total, share = sum(stage.share for stage in stages.values()), 0.0
        for name, stage in stages.items():
            share += stage.share
            self.record["stages"][name] = self._measured(name, stage, until_s=budget_s * share / total)
            self._write()

    def _measured(self, name: str, stage: Stage, until_s: float) -> dict[str, Any]:
        """Return a stage's lines, and its outcome: done, failed, cut off by its time, or left out for lack of it."""
        began, lines, outcome, reason = self._passed_s, list[dict[str, Any]](), "done", ""
        try:
            with time_limit(until_s - began):
                module, _, function = stage.place.partition(":")
                measure: Callable[[Subject], Iterator[Line]] = getattr(import_module(module), function)
                with closing(measure(self._subject)) as measuring:  # type: ignore[type-var]
                    for line in measuring:
                        lines.append(asdict(line))
                        self._say(name, said(line))
        except OutOfTime:
            has_begun = began < until_s
            outcome = "cut off" if has_begun else "left out"
            reason = f"its time was up after {until_s - began:.0f} s" if has_begun else "earlier stages took its time"
        except Exception as error:  # noqa: BLE001  whatever it is, it is this stage's finding
            outcome, reason = "failed", f"{type(error).__name__}: {error}"
        if outcome != "done":
            self._say(name, f"{outcome}: {reason}")
        return {"outcome": outcome, "reason": reason, "seconds": self._passed_s - began, "lines": lines}

    def _write(self) -> None:
        for name, content in {RESULTS: json.dumps(self.record, indent=1) + "\n", REPORT: report(self.record)}.items():
            partial = self._folder / f"{name}.partial"
            partial.write_text(content)
            partial.replace(self._folder / name)

    def _say(self, name: str, words: str) -> None:
        print(f"{self._passed_s:6.1f} s  {name:9s} {words}", flush=True)

    @property
    def _passed_s(self) -> float:
        return time.monotonic() - self._began


def said(line: Line) -> str:
    """Return a line as text."""
    figures = (f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in line.figures.items())
    words = " ".join(f"{line.name}: {', '.join(figures)}".split())
    return words if len(words) <= _MOST_CHARS else f"{words[:_MOST_CHARS]}..."


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds, as soon as Python code runs again."""
    if seconds <= 0:
        raise OutOfTime

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
