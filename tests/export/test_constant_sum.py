"""A bias that is stored in weights, because normalised states have a constant sum."""

import numpy as np
import pytest

from rankrt.arrays import Float32Array

pytest.importorskip("onnx_ir", reason="needs the export extra")

from rankrt_export.targets.constant_sum import ConstantSum

N, N_OUT = 128, 48


def half(x: Float32Array) -> Float32Array:
    return x.astype(np.float16).astype(np.float32)


def normalised(x: Float32Array, scale: Float32Array, bias: Float32Array) -> Float32Array:
    x = x - x.mean(axis=1, keepdims=True)
    return half(x / x.std(axis=1, keepdims=True) * half(scale) + half(bias))


@pytest.mark.parametrize("middle", [0.0, 0.3, -0.3])
def test_weights_of_a_norm_s_output_hold_the_bias(middle: float):
    """Also where the sum of the norm as it is is near 0. The bias is off by a rounding to half precision at most."""
    chance = np.random.default_rng(0)

    def normal(deviation: float, *shape: int) -> Float32Array:
        return (deviation * chance.standard_normal(shape)).astype(np.float32)

    x, weight, bias = normal(1, 200, N), normal(N**-0.5, N_OUT, N), normal(2, N_OUT)
    scale, norm_bias = chance.uniform(0.2, 1.5, N).astype(np.float32), normal(0.2, N)
    norm_bias += np.float32(middle - (norm_bias / scale).mean()) * scale

    found = ConstantSum.of(scale, norm_bias)
    assert found is not None
    folded = normalised(x, scale, found.bias) @ half(found.folded(weight, bias)).T
    added = normalised(x, scale, norm_bias) @ half(weight).T + bias
    assert np.abs(folded - added).max() < 4e-3  # the states' own rounding differs by 2e-3
    shifted = normalised(x, scale, found.bias)
    np.testing.assert_allclose(shifted @ found.direction, 1, atol=1e-3)


def test_a_norm_that_rounding_would_not_bear_keeps_its_bias():
    """Features that the norm scales by next to nothing, or by nothing, but shifts."""
    ones, shifts = np.ones(N, np.float32), np.ones(N, np.float32)
    assert ConstantSum.of(ones, shifts) is not None
    for scale in (0.0, 1e-4):
        small = ones.copy()
        small[:2] = scale
        assert ConstantSum.of(small, np.array([1, -1] * (N // 2), np.float32)) is None
