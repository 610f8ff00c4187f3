"""One file a suite: each says which cases there are for a system, and how one is measured."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness.lab import Case, Lab
from benchmarks.suites import export, latency, load, quality, roofline, scaling, startup, throughput

SUITES: Mapping[str, Callable[[Lab, str], Sequence[Case]]] = {
    "latency": latency.cases,
    "throughput": throughput.cases,
    "scaling": scaling.cases,
    "roofline": roofline.cases,
    "quality": quality.cases,
    "startup": startup.cases,
    "export": export.cases,
    "load": load.cases,
}
