"""FloatLinear beside a product in float64, with the same bits in every run."""

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.kernels.support import Array, float_panels, gelu, run

pytestmark = pytest.mark.usefixtures("library")

# Tiles have up to 12 rows, of which the second half follows the first by 32 inputs. Panels have 32 outputs.
COUNTS = [0, *range(1, 14), 23, 24, 25, 100]
N_IN = [1, 2, 3, 31, 32, 33, 64, 65, 384, 1024]
N_OUT = [*range(1, 33), 33, 63, 64, 95]


def random_layer(n_tokens: int, n_in: int, n_out: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(n_in * 1000 + n_out)
    shapes = (n_tokens, n_in), (n_in, n_out), (n_out,)
    x, weights, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, weights, bias


def multiply(
    x: Array, weights: Array, bias: Array | None = None, *, with_gelu: bool = False, threads: int = 1
) -> Array:
    attributes = {"n_outputs": weights.shape[1], "gelu": int(with_gelu)}
    given = {} if bias is None else {"bias": bias}
    return run("FloatLinear", attributes, threads, x=x, float_panels=float_panels(weights), **given)


def check(n_tokens: int, n_in: int, n_out: int, *, with_gelu: bool = False, with_bias: bool = True) -> None:
    x, weights, bias = random_layer(n_tokens, n_in, n_out)
    y = multiply(x, weights, bias if with_bias else None, with_gelu=with_gelu)
    assert y.shape == (n_tokens, n_out)
    exact = x.astype(np.float64) @ weights.astype(np.float64) + (bias if with_bias else 0)
    # Each of n_in sums is rounded once; by chance the roundings add up to a few times the root of their number.
    most = np.abs(x).astype(np.float64) @ np.abs(weights) + np.abs(bias)
    off = 4 * n_in**0.5 * 2**-24 * most
    if with_gelu:
        # Its slope is 1.13 at most, and it is exact to 1.7e-7 of what it is taken of, or of 1.
        exact, off = gelu(exact), 1.2 * off + 1.7e-7 * np.maximum(1, np.abs(exact))
    assert np.all(np.abs(y - exact) <= off)


@pytest.mark.parametrize("n_tokens", COUNTS)
def test_all_counts_of_tokens_are_multiplied(n_tokens: int):
    check(n_tokens, 67, 70)


@pytest.mark.parametrize("n_tokens", [1, 9, 13])
@pytest.mark.parametrize("n_in", N_IN)
def test_all_counts_of_inputs_are_multiplied(n_in: int, n_tokens: int):
    check(n_tokens, n_in, 40)


@pytest.mark.parametrize("n_out", N_OUT)
def test_outputs_need_not_fill_a_panel(n_out: int):
    check(5, 12, n_out, with_gelu=n_out % 2 == 0, with_bias=n_out % 3 > 0)


@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gelu_and_bias(with_gelu: bool, with_bias: bool):
    check(25, 100, 65, with_gelu=with_gelu, with_bias=with_bias)


def test_a_token_has_the_same_bits_alone_in_every_run_and_on_two_threads():
    # More tokens than one task takes, and more inputs than the lag of a tile's second half.
    x, weights, bias = random_layer(500, 1024, 40)
    y = multiply(x, weights, bias, with_gelu=True)
    assert np.array_equal(multiply(x, weights, bias, with_gelu=True, threads=2), y)
    for start, stop in [(0, 1), (3, 12), (7, 20), (250, 499)]:
        assert np.array_equal(multiply(x[start:stop], weights, bias, with_gelu=True), y[start:stop])


def test_gelu_is_the_exact_one():
    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e6, 1e6, 0.0]]).astype(np.float32)
    y = multiply(x[:, None], np.ones((1, 1), np.float32), with_gelu=True)[:, 0]
    assert np.all(np.abs(y - gelu(x.astype(np.float64))) <= 1.7e-7 * np.maximum(1, np.abs(x)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("with_gelu", [False, True])
def test_a_token_that_is_not_finite_changes_no_other(value: float, with_gelu: bool):
    x, weights, bias = random_layer(20, 50, 40)
    before = multiply(x, weights, bias, with_gelu=with_gelu)
    x[7, 49] = value
    after = multiply(x, weights, bias, with_gelu=with_gelu)
    assert not np.isfinite(after[7]).any()
    assert np.array_equal(np.delete(after, 7, 0), np.delete(before, 7, 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": (2, 7)}, "the weights are not panels of 32 outputs and all inputs"),
        ({"x": (2, 9)}, "the weights are not panels of 32 outputs and all inputs"),
        ({"float_panels": (2, 100)}, "the weights are not panels of 32 outputs and all inputs"),
        ({"float_panels": (1, 8, 32)}, "n_outputs does not fit the weights"),
        ({"float_panels": (3, 8, 32)}, "n_outputs does not fit the weights"),
        ({"bias": (64,)}, "the bias does not fit the weights"),
        ({"bias": (40, 2)}, "the bias does not fit the weights"),
    ],
)
def test_inputs_have_to_fit_each_other(changed: dict[str, tuple[int, ...]], message: str):
    shapes = {"x": (2, 8), "float_panels": (2, 8, 32), "bias": (40,)} | changed
    inputs = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    with pytest.raises(InvalidArgument, match=message):
        run("FloatLinear", {"n_outputs": 40, "gelu": 0}, **inputs)


@pytest.mark.parametrize("n_outputs", [-1, 0, 31, 32, 65])
def test_n_outputs_has_to_fit_the_panels(n_outputs: int):
    x, panels = np.ones((2, 8), np.float32), np.ones((2, 8, 32), np.float32)
    with pytest.raises(InvalidArgument, match="n_outputs does not fit the weights"):
        run("FloatLinear", {"n_outputs": n_outputs, "gelu": 0}, x=x, float_panels=panels)
