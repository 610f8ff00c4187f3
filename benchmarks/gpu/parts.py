"""The parts of a run on the GPU, beside what each would take at the card's own rates.

A part that takes twice as long has something to win. A custom operator that applies GELU where the product is written
could win the time of the activation at most. Knows kernels by their names in ONNX Runtime and PyTorch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.gpu.lines import Line
from benchmarks.harness.operations import Shape

REST = "rest"
# By words in the lower-case names. The first part with a word has the kernel: flash attention is made with CUTLASS,
# which makes products, too, and a kernel that adds a bias and applies GELU has both words.
_WORDS = {
    "attention": ("flash", "fmha", "attention"),
    "products": ("gemm", "nvjet", "xmma", "cublas", "cutlass", "splitk"),
    "norms": ("layernorm", "layer_norm"),
    "activation": ("gelu",),
    "biases": ("bias",),
}
PARTS = (*_WORDS, REST)
_HALF_BYTES = 2
# How often a layer of rankrt's graph reads or writes a value of its states. Two norms read them and what is added to
# them, and write. The query's bias is added in place. GELU reads and writes the inner states.
_BY_NORMS, _BY_BIASES, _BY_ACTIVATION = 2 * 3, 2, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Seconds of the three shapes of products in a layer, of which it has four, one and one."""

    square_s: float
    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The card's own rates for a run: products and attention of a layer alone, and bytes that a copy moves."""

    products: Products
    attention_s: float
    bytes_per_s: float


def part_of(kernel: str) -> str:
    """Return the part that a kernel belongs to, by its name."""
    lower = kernel.lower()
    return next((part for part, words in _WORDS.items() if any(word in lower for word in words)), REST)


def parts_of(name: str, took_ms: Mapping[str, float], best_ms: Mapping[str, float]) -> Iterator[Line]:
    """Yield a line for each part of a run: its time, its share, and its ratio to the time at the card's rates."""
    total = sum(took_ms.values())
    for part in PARTS:
        ms = sum(took for kernel, took in took_ms.items() if part_of(kernel) == part)
        best = best_ms.get(part)
        figures = {"ms": ms, "share": ms / total, "at_best_ms": best or "-", "times_best": ms / best if best else "-"}
        yield Line(name=f"{name}: {part}", figures=figures)


def at_best_ms(shape: Shape, n_tokens: int, rates: Rates) -> dict[str, float]:
    """Return what the parts of a run of rankrt's graph in fp16 take at the card's rates.

    The last layer needs keys and values of all tokens. The rest of it is for first tokens only, and counts as nothing.
    """
    n_full, product = shape.n_layers - 1, rates.products
    layer_s = 4 * product.square_s + product.up_s + product.down_s
    states_s = n_tokens * shape.hidden * _HALF_BYTES / rates.bytes_per_s
    inner_s = n_tokens * shape.intermediate * _HALF_BYTES / rates.bytes_per_s
    return {
        "attention": 1e3 * n_full * rates.attention_s,
        "products": 1e3 * (n_full * layer_s + 2 * product.square_s),
        "norms": 1e3 * n_full * _BY_NORMS * states_s,
        "activation": 1e3 * n_full * _BY_ACTIVATION * inner_s,
        "biases": 1e3 * n_full * _BY_BIASES * states_s,
    }
