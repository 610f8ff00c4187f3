"""Places, RoundTokens and AddNorm beside numpy: what they compute of each token, and what they refuse."""

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from tests.kernels.support import offsets_of, run, run_all

pytestmark = pytest.mark.usefixtures("library")

SYMMETRIC = {"zero_point": 128, "floor": 1e-12}
AFTER_GELU = {"zero_point": 16, "floor": 0.17 / 16}
WIDTHS = [1, 3, 4, 15, 16, 17, 21, 63, 64, 65, 1000, 1024]
COUNTS = [0, 1, 2, 3, 7, 13, 16, 17, 40]


@pytest.mark.parametrize("lengths", [[], [0], [1], [3, 1, 0, 5], [0, 0, 2], [700, 300]])
def test_places_count_from_the_start_of_each_row(lengths: list[int]):
    places = run("Places", row_offsets=offsets_of(lengths))
    assert places.tolist() == [place for length in lengths for place in range(length)]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 3, 2], [0, -1], [[0, 1]]])
def test_row_offsets_have_to_ascend_from_0(offsets: list[int]):
    with pytest.raises(InvalidArgument, match="row_offsets do not ascend from 0"):
        run("Places", row_offsets=np.array(offsets, np.int32))


@pytest.mark.parametrize("attributes", [SYMMETRIC, AFTER_GELU], ids=["symmetric", "after GELU"])
@pytest.mark.parametrize("with_factors", [False, True])
@pytest.mark.parametrize("n_in", WIDTHS)
def test_a_byte_is_the_nearest_step_of_its_tokens_scale(n_in: int, with_factors: bool, attributes: dict[str, float]):
    rng = np.random.default_rng(n_in)
    for n_tokens in COUNTS:
        x = (rng.standard_normal((n_tokens, n_in)) * rng.lognormal(0, 3, (n_tokens, 1))).astype(np.float32)
        if attributes is AFTER_GELU:
            x = np.maximum(x, np.float32(-0.17))
        factors = rng.lognormal(size=n_in).astype(np.float32)
        given = {"factors": factors} if with_factors else {}
        if with_factors and attributes is AFTER_GELU:
            x = np.maximum(x, -np.float32(0.17) / factors)
        got, scales = run_all("RoundTokens", attributes, x=x, **given)
        scaled = x * factors if with_factors else x
        zero_point = attributes["zero_point"]
        reach = np.abs(scaled).max(1, initial=0) / np.float32(255 - zero_point)
        assert scales.tolist() == np.maximum(reach, np.float32(attributes["floor"])).tolist()
        exact = scaled.astype(np.float64) / scales.astype(np.float64)[:, None] + zero_point
        # Three roundings of float32 lie between: 255 * 3 * 2^-24 = 5e-5.
        assert np.abs(got[:, :n_in] - exact).max(initial=0) <= 0.5 + 1e-4
        assert got.shape[1] >= n_in
        assert np.all(got[:, n_in:] == zero_point)


def test_a_token_of_zeros_gets_the_floor_and_the_zero_point():
    got, scales = run_all("RoundTokens", SYMMETRIC, x=np.zeros((3, 20), np.float32))
    assert np.all(got == 128)
    assert scales.tolist() == [np.float32(1e-12)] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_has_such_a_scale_and_no_other_token_has(value: float):
    x = np.ones((5, 33), np.float32)
    x[2, 32] = value
    scales = run_all("RoundTokens", SYMMETRIC, x=x)[1]
    assert np.isfinite(scales).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"zero_point": 255, "floor": 1.0}, "zero_point leaves no bytes above it"),
        ({"zero_point": -1, "floor": 1.0}, "not between 0 and 255"),
        ({"zero_point": 128, "floor": 0.0}, "floor is not above 0"),
        ({"zero_point": 128, "floor": float("nan")}, "floor is not above 0"),
    ],
)
def test_rounding_has_a_grid(attributes: dict[str, float], message: str):
    with pytest.raises(RuntimeException, match=message):
        run("RoundTokens", attributes, x=np.ones((1, 4), np.float32))


def test_factors_have_to_fit():
    with pytest.raises(InvalidArgument, match="factors do not fit the inputs"):
        run("RoundTokens", SYMMETRIC, x=np.ones((2, 4), np.float32), factors=np.ones(3, np.float32))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("n_features", WIDTHS)
def test_a_sum_is_normalised_over_its_features(n_features: int, with_bias: bool):
    rng = np.random.default_rng(n_features)
    weight, bias = rng.standard_normal((2, n_features)).astype(np.float32)
    given = {"bias": bias} if with_bias else {}
    for n_tokens in COUNTS:
        x, y = (rng.standard_normal((2, n_tokens, n_features)) * 3 + 1).astype(np.float32)
        z = run("AddNorm", {"epsilon": 1e-5}, x=x, y=y, weight=weight, **given)
        both = (x + y).astype(np.float64)
        normal = both - both.mean(1, keepdims=True)
        normal /= np.sqrt((normal**2).mean(1, keepdims=True) + 1e-5)
        exact = normal * weight + (bias if with_bias else 0)
        # The mean is off by some 2^-24 of the largest state, which the deviation divides, and epsilon bounds below.
        deviation = np.sqrt(both.var(1, keepdims=True) + 1e-5)
        off = (np.abs(both).max(1, keepdims=True) / deviation + np.abs(normal)) * 2**-21
        assert np.all(np.abs(z - exact) <= off * np.abs(weight) + 1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_stays_in_its_token(value: float):
    x = np.random.default_rng(0).standard_normal((5, 21)).astype(np.float32)
    y, weight = np.ones_like(x), np.ones(21, np.float32)
    before = run("AddNorm", {"epsilon": 1e-5}, x=x, y=y, weight=weight)
    x[3, 20] = value
    after = run("AddNorm", {"epsilon": 1e-5}, x=x, y=y, weight=weight)
    assert np.isnan(after[3]).all()
    assert np.array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": (3, 4)}, "x and y differ in shape"),
        ({"y": (2, 5)}, "x and y differ in shape"),
        ({"weight": (5,)}, "the weight does not fit the states"),
        ({"weight": (4, 2)}, "the weight does not fit the states"),
        ({"bias": (3,)}, "the bias does not fit the states"),
        ({"x": (0, 2**41), "y": (0, 2**41)}, "an input is too large"),
        ({"x": (1,) * 9}, "an input has too many dimensions"),
    ],
)
def test_states_weight_and_bias_have_to_fit(changed: dict[str, tuple[int, ...]], message: str):
    shapes = {"x": (2, 4), "y": (2, 4), "weight": (4,), "bias": (4,)} | changed
    with pytest.raises(InvalidArgument, match=message):
        run("AddNorm", {"epsilon": 1e-5}, **{key: np.ones(shape, np.float32) for key, shape in shapes.items()})
