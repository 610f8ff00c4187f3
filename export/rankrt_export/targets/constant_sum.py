"""A weighted sum of normalised states that is the same for every token. A layer's bias can be stored in it.

A norm's output is h = scale * x + bias, where the values of x sum to 0. So h / scale sums to the same number for every
token. Weights that get that sum's direction times a bias give the bias with the product, and nothing has to add it.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from rankrt.arrays import Float32Array

# The sum of a norm as it is may be near 0. So the norm's bias gets so much of its scale, and the sum as much for each
# feature. The states grow by 3 % then.
_SHIFT = 0.25
# How far the rounding of states and weights may move the bias, in roundings of the bias itself. Trained models of 128
# and 384 features have 0.2 to 0.4.
_MOST_ROUNDINGS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSum:
    """A norm in half precision whose bias was shifted, so that its outputs h have h @ direction = 1.

    bias       (n_features,) of the norm, shifted
    shift      (n_features,) by which all outputs are larger than before
    direction  (n_features,)
    """

    bias: Float32Array
    shift: Float32Array
    direction: Float32Array

    @classmethod
    def of(cls, scale: Float32Array, bias: Float32Array) -> Self | None:
        """Shift the norm with that scale and bias; None if rounding would move a folded bias too far."""
        exact = scale.astype(np.float16).astype(np.float64)
        if not exact.all():
            return None
        sign = np.copysign(_SHIFT, np.sum(bias / exact))
        shifted = (bias + sign * exact).astype(np.float16)
        ratios = shifted / exact
        total = ratios.sum()
        # x has a variance of 1. Each product of a state and its direction is rounded about once.
        if np.sqrt(np.sum(1 + ratios**2)) > _MOST_ROUNDINGS * abs(total):
            return None
        return cls(
            bias=shifted.astype(np.float32),
            shift=(shifted - bias.astype(np.float64)).astype(np.float32),
            direction=(1 / exact / total).astype(np.float32),
        )

    def folded(self, weight: Float32Array, bias: Float32Array) -> Float32Array:
        """Return weights, (n_out, n_features), that give of shifted states what weight and bias give of others."""
        return weight + np.outer(bias - weight @ self.shift, self.direction)
