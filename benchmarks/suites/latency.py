"""The time of a request: numbers of passages times kinds of text, as shipped."""

from functools import partial
from itertools import product

from benchmarks.harness.lab import Case, Lab, Measured


def cases(lab: Lab, system: str) -> list[Case]:
    """Return the cases from the shortest request to the longest, so that too long ones can be predicted."""
    settings = lab.settings
    lengths = [kind for kind in settings.kinds if not kind.isdigit() or int(kind) <= lab.checkpoint.max_length]
    return [
        Case(
            name=f"{n} x {kind} tokens" if kind.isdigit() else f"{n} {kind}",
            measure=partial(_measure, lab, system, kind, n),
        )
        for kind, n in product(lengths, settings.passages)
    ]


def _measure(lab: Lab, system: str, kind: str, n_passages: int) -> Measured:
    return lab.time(system, lab.source.make(kind, n_passages))
