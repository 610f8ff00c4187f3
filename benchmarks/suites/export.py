"""The cost before a system can load a checkpoint: time, peak memory and size of its conversions."""

from functools import partial

from benchmarks.harness.conversions import cost_of
from benchmarks.harness.lab import Case, Lab, Measured
from benchmarks.harness.worker import SystemFailed
from benchmarks.systems import CONVERSIONS, entry_of


def cases(lab: Lab, system: str) -> list[Case]:
    """Return one case for a system that needs a conversion."""
    given = entry_of(system).given
    return [Case(name=given, measure=partial(_measure, lab, system, given))] if given else []


def _measure(lab: Lab, system: str, given: str) -> Measured:
    """Convert, or return the measurement of the earlier conversion."""
    if lab.settings.artifact and given.startswith("rankrt"):
        raise SystemFailed("the artifact was given (--artifact), not made here")
    lab.path_for(system)
    chain = [given]
    while CONVERSIONS[chain[-1]].of:
        chain.append(CONVERSIONS[chain[-1]].of)
    costs = [cost_of(name, lab.model.sha256) for name in chain]
    return Measured(
        size={"n_steps": len(chain)},
        metrics={
            "seconds": sum(cost.seconds for cost in costs),
            "peak_mb": max(cost.peak_mb for cost in costs),
            "size_mb": costs[0].size_mb,
        },
    )
