"""A program that runs the operators on many shapes, each array at the end of its pages, and prints what they wrote.

python -m tests.kernels.guarded

A read or a write after the end of an array is a crash: the page that follows may not be touched. Each line is an
operator with its shapes and the hash of its outputs, so that two runs can be compared.
"""

import ctypes
import hashlib
import mmap
from collections.abc import Iterator

import numpy as np

from tests.kernels.support import Array, Attributes, float_panels, layer, offsets_of, session_of

SEED, N_CASES = 7, 60
_C = ctypes.CDLL(None, use_errno=True)
_PROT_NONE = 0


def guarded(array: Array) -> Array:
    """Return a copy of an array that ends where a page begins that cannot be read or written."""
    n_bytes = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, n_bytes + mmap.PAGESIZE)
    guard = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + n_bytes
    if _C.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, _PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect failed")
    placed: Array = np.ndarray(array.shape, array.dtype, pages, n_bytes - array.nbytes)
    placed[...] = array
    return placed


def cases() -> Iterator[tuple[str, Attributes, dict[str, Array]]]:
    """Yield operators with attributes and inputs, of random shapes."""
    rng = np.random.default_rng(SEED)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    def width() -> int:
        return int(rng.choice(np.array([rng.integers(1, 70), 32 * rng.integers(1, 9), rng.integers(1, 600)])))

    for _ in range(N_CASES):
        n_tokens, n_in, n_out = int(rng.integers(0, 40)), width(), width()
        some = np.array([0, 1, 2, 7, 31, 64, 100, rng.integers(1, 500)])
        lengths = [int(n) for n in rng.choice(some, rng.integers(0, 5))]
        n_packed, n_heads, size = sum(lengths), int(rng.integers(1, 4)), width() % 300 + 1
        first_only = int(rng.integers(2))
        n_queries = len(lengths) if first_only else n_packed
        has_factors, has_bias, has_gelu = (bool(rng.integers(2)) for _ in range(3))
        yield "Places", {}, {"row_offsets": offsets_of(lengths)}
        grid = {"zero_point": int(rng.choice([16, 128])), "floor": 1e-12}
        factors = {"factors": np.abs(normal(n_in))} if has_factors else {}
        yield "RoundTokens", grid, {"x": normal(n_tokens, n_in), **factors}
        weights = rng.integers(-127, 128, (n_in, n_out)).astype(np.int8)
        attributes = {"n_outputs": n_out, "zero_point": int(rng.choice([16, 128])), "gelu": int(has_gelu)}
        bias = {"bias": normal(n_out)} if has_bias else {}
        levels = rng.integers(0, 256, (n_tokens, -(-n_in // 4) * 4)).astype(np.uint8)
        scales = {"token_scales": np.abs(normal(n_tokens)) * np.float32(1e-3)}
        yield "Linear", attributes, {"bytes": levels, **scales, **layer(weights, np.abs(normal(n_out))), **bias}
        given = {"x": normal(n_tokens, n_in), "float_panels": float_panels(normal(n_in, n_out)), **bias}
        yield "FloatLinear", {"n_outputs": n_out, "gelu": int(has_gelu)}, given
        vectors = {"queries": normal(n_queries, n_heads * size) * np.float32(2)}
        vectors |= {name: normal(n_packed, n_heads * size) for name in ("keys", "values")}
        row_offsets = {"row_offsets": offsets_of(lengths)}
        for name in ("Attention", "FloatAttention"):
            yield name, {"n_heads": n_heads, "first_only": first_only}, {**vectors, **row_offsets}
        bias = {"bias": normal(n_in)} if has_bias else {}
        states = {"x": normal(n_tokens, n_in), "y": normal(n_tokens, n_in), "weight": normal(n_in)}
        yield "AddNorm", {"epsilon": 1e-5}, {**states, **bias}


def run_guarded(name: str, attributes: Attributes, inputs: dict[str, Array]) -> list[Array]:
    """Run an operator from and into guarded arrays; a run before tells the outputs' shapes."""
    session = session_of(name, tuple(inputs), tuple(attributes.items()), 2)
    plain: list[Array] = session.run(None, inputs)
    placed = {key: guarded(array) for key, array in inputs.items()}
    outputs = [guarded(np.zeros_like(array)) for array in plain]
    binding = session.io_binding()
    for key, array in placed.items():
        binding.bind_input(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for found, array in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_output(found.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    for first, second in zip(plain, outputs, strict=True):
        assert first.tobytes() == second.tobytes(), f"{name} wrote something else into guarded memory"
    return outputs


def main() -> None:
    """Run all cases."""
    for name, attributes, inputs in cases():
        outputs = run_guarded(name, attributes, inputs)
        found = hashlib.sha256(b"".join(output.tobytes() for output in outputs)).hexdigest()[:16]
        print(name, *(f"{key}{array.shape}" for key, array in inputs.items()), found)


if __name__ == "__main__":
    main()
