"""The throughput of a list of passages."""

from functools import partial
from typing import get_args

from benchmarks.harness.lab import Case, Lab, Measured
from benchmarks.records.record import Given
from benchmarks.systems import entry_of


def cases(lab: Lab, system: str) -> list[Case]:
    """Return both ways to give a system its text, or one if it has no batch size to choose."""
    ways: tuple[Given, ...] = get_args(Given) if entry_of(system).batch_sizes else ("as shipped",)
    n = min(lab.settings.passages, key=lambda n_passages: abs(n_passages - 32))
    return [
        Case(name=f"{n} {kind}", given=given, measure=partial(_measure, lab, system, kind, n, given))
        for kind in ("mixed", "paragraphs")
        if kind in lab.settings.kinds
        for given in ways
    ]


def _measure(lab: Lab, system: str, kind: str, n_passages: int, given: Given) -> Measured:
    return lab.time(system, lab.source.make(kind, n_passages), given)
