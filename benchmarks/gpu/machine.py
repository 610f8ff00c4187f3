"""What the card does at best: a large product, a copy, and the products of the model's own layers."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from benchmarks.gpu.lines import Line, median_s
from benchmarks.gpu.pytorch import DEVICE, HALF, wait
from benchmarks.gpu.subject import Subject

# A launch takes microseconds; so many in a row leave it out of the time.
_REPEATS = 20
_COPIED_BYTES = 1 << 30
PRODUCTS = "products of a layer"


def machine(subject: Subject) -> Iterator[Line]:
    """Yield the card's rates in fp16."""
    n, seconds = subject.size.n_square, subject.size.seconds / 3
    a, b = (torch.randn(n, n, device=DEVICE, dtype=HALF) for _ in range(2))
    took = _seconds(lambda: torch.matmul(a, b), seconds)
    yield Line(name=f"product of {n} x {n}", figures={"tflops": 2 * n**3 / took / 1e12})
    n_bytes = _COPIED_BYTES if DEVICE == "cuda" else _COPIED_BYTES >> 10
    old = torch.zeros(n_bytes, dtype=torch.int8, device=DEVICE)
    new = torch.empty_like(old)
    yield Line(name="copy", figures={"gb_per_s": 2 * n_bytes / _seconds(lambda: new.copy_(old), seconds) / 1e9})
    for n_tokens in subject.size.sweep:
        yield _products(subject, n_tokens, seconds)


def _products(subject: Subject, n_tokens: int, seconds: float) -> Line:
    """Measure the three shapes of products in a layer, of which it has four, one and one."""
    shape = subject.size.shape
    x, wide = (torch.randn(n_tokens, width, device=DEVICE, dtype=HALF) for width in (shape.hidden, shape.intermediate))
    square, up, down = (
        torch.randn(size, device=DEVICE, dtype=HALF)
        for size in (
            (shape.hidden, shape.hidden),
            (shape.intermediate, shape.hidden),
            (shape.hidden, shape.intermediate),
        )
    )
    took = {
        "square": _seconds(lambda: functional.linear(x, square), seconds),
        "up": _seconds(lambda: functional.linear(x, up), seconds),
        "down": _seconds(lambda: functional.linear(wide, down), seconds),
    }
    total = 4 * took["square"] + took["up"] + took["down"]
    operations = n_tokens * (8 * shape.hidden**2 + 4 * shape.hidden * shape.intermediate)
    times = {f"{name}_ms": 1e3 * value for name, value in took.items()}
    return Line(name=f"{PRODUCTS}, {n_tokens} tokens", figures={"tflops": operations / total / 1e12, **times})


def _seconds(call: Callable[[], object], at_least_s: float) -> float:
    def several() -> None:
        for _ in range(_REPEATS):
            call()
        wait()

    return median_s(several, at_least_s) / _REPEATS
