"""How near one row comes to the machine's limits: its rate at matrix products, and its memory's bandwidth.

The operations are those that a score needs: the last layer computes keys and values for all tokens, the rest for one. A
system that computes more has a lower share. The products are compared with two rates. A product that is repeated alone
has its weights in the caches. The products of a whole model have their weights in memory. All rates are measured in the
same run.
"""

from functools import partial

from benchmarks.harness.lab import Case, Lab, Measured
from benchmarks.harness.operations import Shape
from benchmarks.harness.worker import SystemFailed

_LENGTHS = (32, 128, 512)


def cases(lab: Lab, system: str) -> list[Case]:
    """Return a row of each length."""
    return [
        Case(name=f"1 x {n} tokens", measure=partial(_measure, lab, system, n))
        for n in _LENGTHS
        if n <= lab.checkpoint.max_length
    ]


def _measure(lab: Lab, system: str, n_tokens: int) -> Measured:
    try:
        shape = Shape.of(lab.checkpoint.config)
    except KeyError as missing:
        raise SystemFailed(f"config.json has no {missing}: its operations cannot be counted") from None
    timed = lab.time(system, lab.source.make(str(n_tokens), 1))
    operations = shape.operations(n_tokens)
    sgemm, bandwidth = lab.ceiling("sgemm", n_tokens), lab.ceiling("bandwidth", 1)
    from_memory = lab.ceiling("sgemm-from-memory", n_tokens)
    intensity = operations / shape.n_bytes
    gflops = operations / 1e6 / (timed.metrics["p50_ms"] or float("nan"))
    rates: dict[str, float | None] = {
        "gflops": gflops,
        "sgemm_gflops": sgemm,
        "sgemm_from_memory_gflops": from_memory,
        "bandwidth_gb_per_s": bandwidth,
        "intensity": intensity,
        "of_sgemm_alone": gflops / sgemm,
        "of_sgemm_from_memory": gflops / from_memory,
    }
    return Measured(
        size=timed.size,
        metrics=timed.metrics | rates,
        seconds=timed.seconds,
        baseline_seconds=timed.baseline_seconds,
    )
