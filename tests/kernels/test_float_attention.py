"""FloatAttention beside softmax in float64: within the bound of float32, alone and in every packing.

Its checks and tasks are those of Attention, whose tests cover them.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.kernels.support import Array, float_attention, offsets_of
from tests.kernels.test_attention import LENGTHS, N_HEADS, SIZES, random_tokens
from tests.kernels.test_attention import attend as attend_in_integers

pytestmark = pytest.mark.usefixtures("library")


attend = partial(attend_in_integers, operator="FloatAttention")


def check(tokens: dict[str, Any], lengths: list[int], outputs: Array, *, first_only: bool = False) -> None:
    size = outputs.shape[1] // N_HEADS
    for row, (start, stop) in enumerate(pairwise(offsets_of(lengths))):
        for head in range(N_HEADS):
            keys = slice(start, stop), slice(head * size, (head + 1) * size)
            queries = (slice(row, row + 1), keys[1]) if first_only else keys
            if start < stop:
                exact, bound = float_attention(tokens["queries"][queries], tokens["keys"][keys], tokens["values"][keys])
                assert np.all(np.abs(outputs[queries] - exact) <= bound)


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("size", [1, 7, *SIZES, 511, 512])
def test_rows_of_all_lengths_are_exact(size: int, spread: float):
    tokens = random_tokens(sum(LENGTHS), size, spread=spread)
    check(tokens, LENGTHS, attend(tokens, LENGTHS))


def test_outputs_of_usual_scores_are_exact_to_a_millionth():
    tokens = random_tokens(600, 64)
    outputs = attend(tokens, [600])
    for head in range(N_HEADS):
        part = slice(head * 64, (head + 1) * 64)
        exact, _ = float_attention(*(tokens[name][:, part] for name in ("queries", "keys", "values")))
        assert np.abs(outputs[:, part] - exact).max() < 1e-6


@pytest.mark.parametrize("size", [21, 64])
def test_a_row_has_the_same_bits_alone_in_any_packing_and_on_two_threads(size: int):
    lengths = [5, 1, 0, 64, 400, 3, 33, 1100]
    tokens = random_tokens(sum(lengths), size)
    packed = attend(tokens, lengths)
    assert np.array_equal(packed, attend(tokens, lengths, threads=2))
    for length, start in zip(lengths, offsets_of(lengths), strict=False):
        alone = {name: values[start : start + length] for name, values in tokens.items()}
        assert np.array_equal(attend(alone, [length]), packed[start : start + length])


def test_the_first_tokens_alone_have_the_bits_that_they_have_among_all():
    lengths = [5, 1, 64, 400]
    tokens = random_tokens(sum(lengths), 32)
    starts = offsets_of(lengths)[:-1]
    first = attend(tokens | {"queries": tokens["queries"][starts]}, lengths, first_only=True)
    assert np.array_equal(first, attend(tokens, lengths)[starts])


def test_rows_of_8192_tokens_are_attended_to():
    tokens = random_tokens(8192, 16, spread=2.0)
    tokens["queries"] = tokens["queries"][:1]
    check(tokens, [8192], attend(tokens, [8192], first_only=True), first_only=True)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_are_no_outputs(lengths: list[int]):
    assert attend(random_tokens(0, 16), lengths).shape == (0, 32)


@pytest.mark.parametrize("score", [10, 100, 1000, 30000])
def test_a_key_far_above_all_others_takes_all(score: int):
    tokens = random_tokens(300, 16)
    tokens["keys"][:, ::16] = 0
    tokens["queries"][:] = 0
    tokens["queries"][:, ::16] = np.linspace(4, 8, 300, dtype=np.float32)[:, None]
    tokens["keys"][7, ::16] = score
    outputs = attend(tokens, [300])
    check(tokens, [300], outputs)
    if score >= 1000:
        # A product with the largest share, and one with the inverse of the sum, are rounded once each.
        assert np.all(np.abs(outputs / tokens["values"][7] - 1) < 2**-22)


@pytest.mark.parametrize("factor", [1e-38, 1e-20, 1e10, 1e18])
def test_tiny_and_huge_values_are_as_exact_as_others(factor: float):
    tokens = random_tokens(40, 16)
    tokens["values"] *= np.float32(factor)
    # The steps of numbers below 2^-126 are 2^-149.
    outputs = attend(tokens, [40])
    if factor > 1e-30:
        check(tokens, [40], outputs)
    else:
        one = {name: values / np.float32(factor if name == "values" else 1) for name, values in tokens.items()}
        assert np.abs(outputs / np.float32(factor) - attend(one, [40])).max() < 1e-5


def test_scores_beyond_float32_are_not_numbers():
    tokens = random_tokens(20, 16)
    huge = tokens | {name: np.abs(tokens[name]) * np.float32(1e20) for name in ("queries", "keys")}
    assert np.isnan(attend(huge, [20])).all()


def test_inputs_have_to_fit_each_other():
    with pytest.raises(InvalidArgument, match="row_offsets do not end where the tokens end"):
        attend(random_tokens(10, 16), [4, 5])
