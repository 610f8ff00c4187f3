"""Attention beside softmax in float64: within the bound that its roundings have, alone and in every packing."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from tests.kernels.support import Array, attention, offsets_of, run

pytestmark = pytest.mark.usefixtures("library")

N_HEADS = 2
SIZES = [8, 16, 21, 32, 48, 64, 96, 128, 256]
LENGTHS = [*range(1, 14), 31, 32, 33, 63, 64, 65, 130, 385]

Floats = NDArray[np.float32]


def random_tokens(n_tokens: int, size: int, *, spread: float = 1.0, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shape = n_tokens, N_HEADS * size
    queries, keys, values = rng.standard_normal((3, *shape)).astype(np.float32)
    return {"queries": queries * np.float32(spread), "keys": keys, "values": values}


def attend(
    tokens: dict[str, Any],
    lengths: list[int],
    *,
    first_only: bool = False,
    threads: int = 1,
    operator: str = "Attention",
) -> Floats:
    attributes = {"n_heads": N_HEADS, "first_only": int(first_only)}
    outputs = run(operator, attributes, threads, row_offsets=offsets_of(lengths), **tokens)
    return outputs.astype(np.float32)


def check(tokens: dict[str, Any], lengths: list[int], outputs: Floats) -> float:
    """Compare each row and head with float64; return the root of the mean square difference beside the outputs'."""
    size = outputs.shape[1] // N_HEADS
    offsets = offsets_of(lengths)
    differences, exacts = [], []
    for start, stop in pairwise(offsets):
        for head in range(N_HEADS):
            part = slice(start, stop), slice(head * size, (head + 1) * size)
            if start == stop:
                continue
            exact, bound = attention(tokens["queries"][part], tokens["keys"][part], tokens["values"][part])
            assert np.all(np.abs(outputs[part] - exact) <= bound)
            differences.append(outputs[part] - exact)
            exacts.append(exact)
    squares = [np.mean(np.concatenate(found) ** 2) for found in (differences, exacts)]
    return float(np.sqrt(squares[0] / squares[1]))


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_all_lengths_are_within_the_bound(size: int):
    tokens = random_tokens(sum(LENGTHS), size, spread=2.0)
    outputs = attend(tokens, LENGTHS)
    # About 1e-3 is what the operator promises of its outputs; the bound above holds for each of them.
    assert check(tokens, LENGTHS, outputs) < 1.5e-3


@pytest.mark.parametrize("size", [1, 2, 7, 24, 40, 511, 512])
def test_heads_of_unusual_sizes(size: int):
    tokens = random_tokens(80, size)
    check(tokens, [80], attend(tokens, [80]))


@pytest.mark.parametrize("size", [1, 2, 3, *SIZES, 511, 512])
def test_the_largest_scores_fit_their_integers(size: int):
    # All features of all queries and keys are at the end of their range; every second key has the other sign.
    tokens = random_tokens(66, size)
    signs = np.where(np.arange(66) % 2, -1, 1).astype(np.float32)[:, None]
    tokens |= {"queries": np.ones_like(tokens["queries"]), "keys": np.ones_like(tokens["keys"]) * signs}
    check(tokens, [66], attend(tokens, [66]))


@pytest.mark.parametrize("size", [21, 64])
def test_a_row_has_the_same_bits_alone_in_any_packing_and_on_two_threads(size: int):
    lengths = [5, 1, 0, 64, 400, 3, 33]
    tokens = random_tokens(sum(lengths), size)
    packed = attend(tokens, lengths)
    assert np.array_equal(packed, attend(tokens, lengths, threads=2))
    offsets = offsets_of(lengths)
    for length, start in zip(lengths, offsets, strict=False):
        alone = {name: values[start : start + length] for name, values in tokens.items()}
        assert np.array_equal(attend(alone, [length]), packed[start : start + length])


def test_the_first_tokens_alone_have_the_bits_that_they_have_among_all():
    lengths = [5, 1, 0, 64, 400, 3, 0]
    tokens = random_tokens(sum(lengths), 32)
    packed = attend(tokens, lengths)
    has_tokens = np.array(lengths) > 0
    starts = offsets_of(lengths)[:-1]
    queries = np.ones((len(lengths), tokens["queries"].shape[1]), np.float32)
    queries[has_tokens] = tokens["queries"][starts[has_tokens]]
    first = attend(tokens | {"queries": queries}, lengths, first_only=True)
    assert np.array_equal(first[has_tokens], packed[starts[has_tokens]])
    assert np.all(first[~has_tokens] == 0)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_are_no_outputs(lengths: list[int]):
    assert attend(random_tokens(0, 16), lengths).shape == (0, 32)


def test_tokens_of_zeros_share_equally():
    tokens = random_tokens(50, 16)
    tokens |= {"queries": np.zeros((50, 32), np.float32), "keys": np.zeros((50, 32), np.float32)}
    outputs = attend(tokens, [50])
    assert np.abs(outputs - tokens["values"].mean(0)).max() < 4 / 1023 / 2
    assert np.all(attend(tokens | {"values": np.zeros((50, 32), np.float32)}, [50]) == 0)


def test_a_value_that_all_tokens_have_comes_back():
    values = np.tile(np.linspace(-5, 7, 32, dtype=np.float32), (600, 1))
    outputs = attend(random_tokens(600, 16, spread=3.0) | {"values": values}, [600])
    assert np.abs(outputs - values).max() <= 7 * 2**-21


def test_8192_equal_keys_give_the_mean_of_the_values():
    tokens = random_tokens(8192, 8)
    tokens["keys"][:] = tokens["keys"][0]
    tokens["queries"] = tokens["queries"][:1]
    outputs = attend(tokens, [8192], first_only=True)
    check_first(tokens, outputs)
    # Equal shares are rounded alike; what remains is the values' rounding, of which 8,192 nearly cancel.
    assert np.abs(outputs - tokens["values"].mean(0)).max() < 2e-4


@pytest.mark.parametrize("score", [10, 100, 1000, 30000])
def test_a_key_far_above_all_others_takes_all(score: int):
    tokens = random_tokens(300, 16)
    tokens["queries"][:] = 0
    # Different products, so that some are rounded up and some down.
    tokens["queries"][:, ::16] = np.linspace(4, 8, 300, dtype=np.float32)[:, None]
    tokens["keys"][:, ::16] = 0
    tokens["keys"][7, ::16] = score
    outputs = attend(tokens, [300])
    check(tokens, [300], outputs)
    if score >= 100:
        assert np.abs(outputs - tokens["values"][7]).max() <= 4 / 1023


def test_scores_far_below_zero_are_not_taken_for_high_ones():
    tokens = random_tokens(40, 16)
    tokens["queries"] = np.abs(tokens["queries"]) * 100
    tokens["keys"] = -np.abs(tokens["keys"]) * 100
    check(tokens, [40], attend(tokens, [40]))


@pytest.mark.parametrize(("n_tokens", "taken"), [(2048, 0.5), (2048, 0.99), (8192, 0.9), (8192, 0.99)])
def test_a_key_that_takes_most_leaves_the_others_their_part(n_tokens: int, taken: float):
    # Of 8,192 tokens, each gets 0.44 steps beside nine tenths: rounded to the nearest, all of them would be lost.
    tokens = random_tokens(n_tokens, 16)
    tokens["queries"] = np.zeros((1, 32), np.float32)
    tokens["queries"][:, ::16] = 4.0
    tokens["keys"][:, ::16] = 0
    tokens["keys"][0, ::16] = np.log((n_tokens - 1) * taken / (1 - taken))
    tokens["values"][1:] = np.abs(tokens["values"][1:])
    outputs = attend(tokens, [n_tokens], first_only=True)
    check_first(tokens, outputs)
    exact = taken * tokens["values"][0] + (1 - taken) * tokens["values"][1:].mean(0)
    # Half of a value's step, of values up to 4. What chance leaves of the roundings, 8,192^0.5 / 2 / 32,766. And half
    # the distance of two offsets, 1/64 of a step, which moves the outputs towards the one key or away from it.
    from_mean = np.abs(tokens["values"][0] - tokens["values"][1:].mean(0))
    off = 4 / 1023 / 2 + 3 * 8192**0.5 / 2 / 32766 + n_tokens / 64 / 32766 * from_mean
    assert np.all(np.abs(outputs - exact) < off)


def check_first(tokens: dict[str, Any], outputs: Floats) -> None:
    size = outputs.shape[1] // N_HEADS
    for head in range(N_HEADS):
        part = slice(head * size, (head + 1) * size)
        exact, bound = attention(*(tokens[name][:, part] for name in ("queries", "keys", "values")))
        assert np.all(np.abs(outputs[:, part] - exact) <= bound)


NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("operator", ["Attention", "FloatAttention"])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    ("name", "touched"),
    [
        # Token 12 belongs to the second row, [10, 60); feature 20 to the second head, [16, 32).
        ("queries", lambda token, feature: (token == 12) & (feature >= 16)),
        ("keys", lambda token, feature: (token >= 10) & (token < 60) & (feature >= 16)),
        ("values", lambda token, feature: (token >= 10) & (token < 60) & (feature == 20)),
    ],
)
def test_what_is_not_finite_reaches_what_depends_on_it_alone(
    name: str, touched: Callable[[Array, Array], Array], value: float, operator: str
):
    lengths = [10, 50, 7]
    tokens = random_tokens(sum(lengths), 16)
    before = attend(tokens, lengths, operator=operator)
    tokens[name][12, 20] = value
    after = attend(tokens, lengths, operator=operator)
    expected = touched(*np.indices(before.shape))
    assert np.array_equal(~np.isfinite(after), expected)
    assert np.array_equal(after[~expected], before[~expected])


@pytest.mark.parametrize("factor", [1e-38, 1e-30, 1e-20, 1e10, 1e18])
def test_tiny_and_huge_tokens_are_as_exact_as_others(factor: float):
    tokens = random_tokens(40, 16)
    scaled = {name: values * np.float32(factor) for name, values in tokens.items()}
    # Queries shrink as keys grow, so that scores stay: but for what has no inverse in float32.
    if factor >= 1e-20:
        scaled["queries"] = tokens["queries"] / np.float32(factor)
    check(scaled, [40], attend(scaled, [40]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row_offsets": [0, 6, 4, 10]}, "row_offsets do not ascend from 0"),
        ({"row_offsets": [1, 10]}, "row_offsets do not ascend from 0"),
        ({"row_offsets": []}, "row_offsets do not ascend from 0"),
        ({"row_offsets": [0, 4, 9]}, "row_offsets do not end where the tokens end"),
        ({"row_offsets": [0, 11]}, "row_offsets do not end where the tokens end"),
        ({"row_offsets": [0, 2**31 - 1]}, "row_offsets do not end where the tokens end"),
        ({"queries": (9, 32)}, "there are more or fewer queries than tokens"),
        ({"keys": (9, 32)}, "row_offsets do not end where the tokens end"),
        ({"values": (11, 32)}, "row_offsets do not end where the tokens end"),
        ({"keys": (10, 16)}, "keys and queries differ in size"),
        ({"values": (10, 64)}, "keys and queries differ in size"),
        ({"queries": (10, 31), "keys": (10, 31), "values": (10, 31)}, "cannot be divided among the heads"),
        ({"queries": (10, 0), "keys": (10, 0), "values": (10, 0)}, "cannot be divided among the heads"),
        ({"queries": (10, 1026), "keys": (10, 1026), "values": (10, 1026)}, "a head has more than 512 features"),
    ],
)
def test_inputs_have_to_fit_each_other(changed: dict[str, list[int] | tuple[int, ...]], message: str):
    shapes = {"queries": (10, 32), "keys": (10, 32), "values": (10, 32), "row_offsets": [0, 10]} | changed
    inputs: dict[str, Array] = {name: np.ones(shapes[name], np.float32) for name in ("queries", "keys", "values")}
    inputs["row_offsets"] = np.array(shapes["row_offsets"], np.int32)
    with pytest.raises(InvalidArgument, match=message):
        run("Attention", {"n_heads": N_HEADS, "first_only": 0}, **inputs)


def test_a_row_whose_shares_might_overflow_is_refused():
    n = 2**20 + 1
    tokens = {name: np.zeros((n, 1), np.float32) for name in ("keys", "values")}
    with pytest.raises(InvalidArgument, match="more than 1,048,576 tokens"):
        run(
            "Attention",
            {"n_heads": 1, "first_only": 1},
            queries=np.zeros((1, 1), np.float32),
            row_offsets=offsets_of([n]),
            **tokens,
        )


def test_the_longest_row_is_exact():
    n = 2**20
    values = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    zeros = np.zeros((n, 1), np.float32)
    attributes = {"n_heads": 1, "first_only": 1}
    output = run("Attention", attributes, queries=zeros[:1], keys=zeros, values=values, row_offsets=offsets_of([n]))
    assert abs(float(output[0, 0]) - 0.5) < 1e-3


@pytest.mark.parametrize("n_heads", [0, -1])
def test_there_is_a_head(n_heads: int):
    with pytest.raises(RuntimeException, match="n_heads is not above 0"):
        run("Attention", {"n_heads": n_heads, "first_only": 0}, **random_tokens(1, 1), row_offsets=offsets_of([1]))
