"""The suites, one file each: the cases for a system, and how to measure one."""

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
