"""What the card does at best: a large product, a copy, the products of the model's own layers, and attention."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from benchmarks.gpu.lines import PRODUCTS, Line, median_s
from benchmarks.gpu.parts import Products, Rates
from benchmarks.gpu.pytorch import DEVICE, HALF, attend, wait
from benchmarks.gpu.subject import Subject
from benchmarks.harness.operations import Shape

# A launch takes microseconds; so many in a row leave it out of the time.
_REPEATS = 20
_COPIED_BYTES = 1 << 30


def machine(subject: Subject) -> Iterator[Line]:
    """Yield the card's rates in fp16."""
    n, seconds = subject.size.n_square, subject.size.seconds / 3
    a, b = (torch.randn(n, n, device=DEVICE, dtype=HALF) for _ in range(2))
    took = repeated_s(lambda: torch.matmul(a, b), seconds)
    yield Line(name=f"product of {n} x {n}", figures={"tflops": 2 * n**3 / took / 1e12})
    yield Line(name="copy", figures={"gb_per_s": copy_rate(seconds) / 1e9})
    for n_tokens in subject.size.sweep:
        yield _products(subject.size.shape, n_tokens, seconds)


def rates(subject: Subject, n_rows: int, n_row_tokens: int) -> Rates:
    """Measure what a run of so many rows is made of, each kind of work alone."""
    shape, seconds = subject.size.shape, subject.size.seconds / 3
    return Rates(
        products=product_times(shape, n_rows * n_row_tokens, seconds),
        attention_s=_attention_s(subject, n_rows, n_row_tokens, seconds),
        bytes_per_s=copy_rate(seconds),
    )


def copy_rate(at_least_s: float) -> float:
    """Measure the bytes a second that a copy reads and writes."""
    n_bytes = _COPIED_BYTES if DEVICE == "cuda" else _COPIED_BYTES >> 10
    old = torch.zeros(n_bytes, dtype=torch.int8, device=DEVICE)
    new = torch.empty_like(old)
    return 2 * n_bytes / repeated_s(lambda: new.copy_(old), at_least_s)


def product_times(shape: Shape, n_tokens: int, at_least_s: float) -> Products:
    """Measure a layer's products for so many tokens, each alone."""
    x, wide = (torch.randn(n_tokens, width, device=DEVICE, dtype=HALF) for width in (shape.hidden, shape.intermediate))
    square, up, down = (
        torch.randn(size, device=DEVICE, dtype=HALF)
        for size in (
            (shape.hidden, shape.hidden),
            (shape.intermediate, shape.hidden),
            (shape.hidden, shape.intermediate),
        )
    )
    return Products(
        square_s=repeated_s(lambda: functional.linear(x, square), at_least_s),
        up_s=repeated_s(lambda: functional.linear(x, up), at_least_s),
        down_s=repeated_s(lambda: functional.linear(wide, down), at_least_s),
    )


def repeated_s(call: Callable[[], object], at_least_s: float) -> float:
    """Return the median time of a call among many in a row, as the GPU sees it."""

    def several() -> None:
        for _ in range(_REPEATS):
            call()
        wait()

    return median_s(several, at_least_s) / _REPEATS


def _products(shape: Shape, n_tokens: int, seconds: float) -> Line:
    took = product_times(shape, n_tokens, seconds)
    total = 4 * took.square_s + took.up_s + took.down_s
    operations = n_tokens * (8 * shape.hidden**2 + 4 * shape.hidden * shape.intermediate)
    times = {"square_ms": 1e3 * took.square_s, "up_ms": 1e3 * took.up_s, "down_ms": 1e3 * took.down_s}
    return Line(name=f"{PRODUCTS}, {n_tokens} tokens", figures={"tflops": operations / total / 1e12, **times})


def _attention_s(subject: Subject, n_rows: int, n_row_tokens: int, at_least_s: float) -> float:
    n_heads = int(subject.size.encoder["num_attention_heads"])
    q, k, v = torch.randn(
        3, n_rows * n_row_tokens, n_heads, subject.size.shape.hidden // n_heads, device=DEVICE, dtype=HALF
    )
    offsets = torch.arange(0, n_rows * n_row_tokens + 1, n_row_tokens, dtype=torch.int32, device=DEVICE)
    return repeated_s(lambda: attend(q, k, v, offsets, n_row_tokens), at_least_s)
