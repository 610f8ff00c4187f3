"""A measurement in words and figures, and the time that a call takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from benchmarks.harness.operations import Shape

Figure: TypeAlias = float | str
# The systems that are measured, and the products that they are compared with, as lines are called.
RANKRT, PADDED, PACKED = "rankrt fp16", "transformers fp16, sdpa, sorted, padded", "PyTorch fp16, packed"
PRODUCTS = "products of a layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A measurement: its name, and its figures, whose names end in their unit."""

    name: str
    figures: Mapping[str, Figure]


def median_s(call: Callable[[], object], at_least_s: float) -> float:
    """Return the median time of a call that waits for the GPU, over at least 3 calls and so many seconds.

    The first call is not counted. It allocates, and compiles what is compiled.
    """
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least_s:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times)


def rate(name: str, mix: str, lengths: Sequence[int], seconds: float, shape: Shape) -> Line:
    """Return a line on the scoring of rows of these lengths in so many seconds."""
    operations = sum(map(shape.operations, lengths))
    figures: dict[str, Figure] = {
        "rows": mix,
        "tokens_per_s": sum(lengths) / seconds,
        "rows_per_s": len(lengths) / seconds,
        "tflops": operations / seconds / 1e12,
    }
    return Line(name=name, figures=figures)


def latency(name: str, n_rows: int, length: int, seconds: float) -> Line:
    """Return a line on a request of rows of one length."""
    return Line(name=name, figures={"request": f"{n_rows} x {length}", "ms": 1e3 * seconds})
