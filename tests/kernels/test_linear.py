"""Linear beside a product of integers in numpy, which is exact."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from tests.kernels.support import Array, gelu, layer, linear, run, run_all

pytestmark = pytest.mark.usefixtures("library")

# Tiles have up to 12 rows, panels 32 outputs, and four inputs are multiplied at once.
COUNTS = [0, *range(1, 14), 23, 24, 25, 100]
N_IN = [1, 2, 3, 4, 5, 31, 64, 130]
N_OUT = [*range(1, 33), 33, 63, 64, 95]


def random_layer(n_in: int, n_out: int) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(n_in * 1000 + n_out)
    weights = rng.integers(-127, 128, (n_in, n_out)).astype(np.int8)
    return weights, rng.lognormal(-6, 1, n_out).astype(np.float32), rng.standard_normal(n_out).astype(np.float32)


def attributes_of(n_out: int, zero_point: int = 128, gelu: int = 0) -> dict[str, int]:
    return {"n_outputs": n_out, "zero_point": zero_point, "gelu": gelu}


def check(n_tokens: int, n_in: int, n_out: int, *, zero_point: int, with_gelu: bool, with_bias: bool) -> None:
    rng = np.random.default_rng(n_tokens)
    levels = rng.integers(0, 256, (n_tokens, n_in)).astype(np.uint8)
    # Bytes after the inputs that the weights have are not read, or meet zeros.
    stored = np.pad(levels, ((0, 0), (0, -n_in % 4 + 4)), constant_values=77)
    token_scales = rng.lognormal(-3, 1, n_tokens).astype(np.float32)
    weights, scales, bias = random_layer(n_in, n_out)
    given: dict[str, Array] = {"bias": bias} if with_bias else {}
    attributes = attributes_of(n_out, zero_point, int(with_gelu))
    y = run("Linear", attributes, bytes=stored, token_scales=token_scales, **layer(weights, scales), **given)
    assert y.shape == (n_tokens, n_out)
    steps = levels.astype(np.int64) - zero_point
    plain = linear(steps, token_scales, weights, scales, None)
    exact = linear(steps, token_scales, weights, scales, bias if with_bias else None)
    # Four roundings of float32: of the sum, by each scale, and with the bias.
    off = 4 * 2**-24 * (np.abs(plain) + np.abs(exact))
    if with_gelu:
        # Its slope is 1.13 at most, and it is exact to 1.7e-7 of what it is taken of, or of 1.
        exact, off = gelu(exact), 1.2 * off + 1.7e-7 * np.maximum(1, np.abs(exact))
    assert np.all(np.abs(y - exact) <= off)


@pytest.mark.parametrize("n_tokens", COUNTS)
def test_all_counts_of_tokens_are_multiplied(n_tokens: int):
    check(n_tokens, 67, 70, zero_point=128, with_gelu=False, with_bias=True)


@pytest.mark.parametrize("n_in", N_IN)
def test_inputs_need_not_come_in_fours(n_in: int):
    check(13, n_in, 40, zero_point=128, with_gelu=False, with_bias=True)


@pytest.mark.parametrize("n_out", N_OUT)
def test_outputs_need_not_fill_a_panel(n_out: int):
    check(5, 12, n_out, zero_point=16, with_gelu=n_out % 2 == 0, with_bias=n_out % 3 > 0)


@pytest.mark.parametrize("zero_point", [0, 16, 128, 255])
@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_zero_point_gelu_and_bias(zero_point: int, with_gelu: bool, with_bias: bool):
    check(25, 100, 65, zero_point=zero_point, with_gelu=with_gelu, with_bias=with_bias)


def test_tokens_beyond_one_task_are_multiplied():
    check(700, 2048, 33, zero_point=128, with_gelu=False, with_bias=False)


@pytest.mark.parametrize("byte", [0, 1, 127, 128, 129, 255])
@pytest.mark.parametrize("weight", [-127, -1, 1, 127])
def test_sums_are_exact_at_the_ends_of_the_ranges(byte: int, weight: int):
    n_in = 65536  # the widest layer
    weights = np.full((n_in, 1), weight, np.int8)
    ones = np.ones(1, np.float32)
    y = run(
        "Linear",
        attributes_of(1),
        bytes=np.full((2, n_in), byte, np.uint8),
        token_scales=np.ones(2, np.float32),
        **layer(weights, ones),
    )
    assert y.ravel().tolist() == [np.float32((byte - 128) * weight * n_in)] * 2


def test_gelu_is_the_exact_one():
    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e6, 1e6, 0.0]]).astype(np.float32)
    weights, ones = np.ones((1, 1), np.int8), np.ones(1, np.float32)
    levels = np.where(x < 0, 127, 129).astype(np.uint8)[:, None]
    padded = np.pad(levels, ((0, 0), (0, 3)))
    y = run("Linear", attributes_of(1, 128, 1), bytes=padded, token_scales=np.abs(x), **layer(weights, ones))
    assert np.all(np.abs(y[:, 0] - gelu(x.astype(np.float64))) <= 1.7e-7 * np.maximum(1, np.abs(x)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("with_gelu", [0, 1])
def test_a_token_that_is_not_finite_changes_no_other(value: float, with_gelu: int):
    x = np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32)
    weights, scales, bias = random_layer(50, 40)

    def outputs() -> Array:
        grid = {"zero_point": 128, "floor": 1e-12}
        levels, token_scales = run_all("RoundTokens", grid, x=x)
        given = layer(weights, scales)
        attributes = attributes_of(40, 128, with_gelu)
        return run("Linear", attributes, bytes=levels, token_scales=token_scales, bias=bias, **given)

    before = outputs()
    x[7, 49] = value
    after = outputs()
    assert not np.isfinite(after[7].astype(np.float32)).any()
    assert np.array_equal(np.delete(after, 7, 0), np.delete(before, 7, 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_scales": np.ones(3, np.float32)}, "there is not one scale for each token"),
        ({"token_scales": np.ones((2, 2), np.float32)}, "there is not one scale for each token"),
        ({"bytes": np.zeros((2, 7), np.uint8)}, "the weights have more inputs than the activations"),
        ({"panels": np.zeros((2, 100), np.int8)}, "the weights are not panels"),
        ({"panels": np.zeros((3, 2, 32, 4), np.int8)}, "scales or sums do not fit the weights"),
        ({"scales": np.ones(40, np.float32)}, "scales or sums do not fit the weights"),
        ({"sums": np.zeros(63, np.int32)}, "scales or sums do not fit the weights"),
        ({"bias": np.ones(64, np.float32)}, "the bias does not fit the weights"),
    ],
)
def test_inputs_have_to_fit_each_other(changed: dict[str, Array], message: str):
    weights, scales, bias = random_layer(8, 40)
    inputs: dict[str, Array] = {
        "bytes": np.zeros((2, 8), np.uint8),
        "token_scales": np.ones(2, np.float32),
        "bias": bias,
    }
    with pytest.raises(InvalidArgument, match=message):
        run("Linear", attributes_of(40), **(inputs | layer(weights, scales) | changed))


def tokens(n_tokens: int, n_in: int) -> dict[str, Any]:
    return {"bytes": np.zeros((n_tokens, n_in), np.uint8), "token_scales": np.ones(n_tokens, np.float32)}


@pytest.mark.parametrize("n_outputs", [-1, 0, 31, 32, 65])
def test_n_outputs_has_to_fit_the_panels(n_outputs: int):
    weights, scales, _ = random_layer(8, 40)
    given = layer(weights, scales)
    with pytest.raises(InvalidArgument, match="n_outputs does not fit the weights"):
        run("Linear", attributes_of(n_outputs), **tokens(2, 8), **given)


def test_a_layer_whose_sums_might_overflow_is_refused():
    given = layer(np.ones((65540, 1), np.int8), np.ones(1, np.float32))
    with pytest.raises(InvalidArgument, match="more than 65,536 inputs"):
        run("Linear", attributes_of(1), **tokens(1, 65540), **given)


def test_a_zero_point_is_a_byte():
    given = layer(np.ones((4, 1), np.int8), np.ones(1, np.float32))
    with pytest.raises(RuntimeException, match="not between 0 and 255"):
        run("Linear", attributes_of(1, 256), **tokens(1, 4), **given)
