"""int8 as rankrt computes it: activations per token and weights per output in 8 bits. Numbers only, no model.

A token's activations have a scale of their own. So no other token makes them coarser, and a score depends on its pair
alone.

Without VNNI the processor adds two products in 16 bits (onnxruntime's mlas/lib/platform.cpp chooses its kernels), and
2 * 255 * 64 is just below 2**15. So weights have 7 bits there: half of a stored integer, or the integer above that
half. One stored bit says which. Each rounded alone, halves without the bit have an error 31 % larger than 7 bits at
once. With the bit it is 1 %. The other way, 7 bits for activations and 8 for weights, costs more accuracy. Activations
have outliers, weights have none.

Weights are rounded one input after another. Those that follow make up for the error of one, as far as inputs correlate
on text. This is GPTQ (Frantar et al., 2022, equations 2 and 3), from the last input to the first, so that the Hessian
need not be inverted. It costs nothing when the model runs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankrt.arrays import BoolArray, Float32Array, Int64Array

Int8Array = npt.NDArray[np.int8]
LARGEST_WEIGHT, LARGEST_HALF = 127, 64
# A byte, and the largest value that it can hold.
LARGEST_ACTIVATION = 255
# The exact GELU is nowhere below this.
GELU_MINIMUM = -0.16998
# No row is all zeros in practice; where one is, any scale is right, but not 0.
TINIEST_SCALE = np.float32(1e-12)
# Clipping a column's largest weights makes all the others finer: the candidates, in shares of the largest.
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
# Added to the Hessian's diagonal, in shares of its mean, so that weights are not fitted to a text's noise. 0.01 to 0.1
# make no difference beyond chance in a model's scores. v2-m3's widest layer (4,096 inputs, random weights, calibrated
# on 3,249 tokens) was off by 0.0047 on these tokens and by 0.0051 on others, by 0.106 with each weight rounded alone.
_DAMPING = 0.03
# Inputs that are rounded one by one before their errors reach all others in one product.
_N_TOGETHER = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How the 256 values of a byte stand for a token's activations: value = scale * (byte - zero_point).

    minimum  a bound that no activation is below, as for GELU's output; None where both signs are equal
    """

    zero_point: int
    minimum: float | None = None

    @property
    def least_scale(self) -> np.float32:
        """The least scale of a token: of zeros any would do, and what is below 0 has to fit as well."""
        return TINIEST_SCALE if self.minimum is None else np.float32(-self.minimum / self.zero_point)


# Symmetric: 127 steps on either side.
SYMMETRIC = Grid(zero_point=128)


def one_sided(minimum: float) -> Grid:
    """Return a grid for values of which nearly all are positive: 239 steps for them, 16 for the few others.

    The 16 below zero put a floor under the scale, 0.17 / 16. It matters only to tokens whose largest activation is
    below 2.5.
    """
    return Grid(zero_point=16, minimum=minimum)


def token_scales(x: Float32Array, grid: Grid) -> Float32Array:
    """Return the scale of each token of (n_tokens, n_features), shape (n_tokens, 1)."""
    largest = (np.abs(x) if grid.minimum is None else x).max(axis=1, keepdims=True)
    scales: Float32Array = np.maximum(largest / np.float32(LARGEST_ACTIVATION - grid.zero_point), grid.least_scale)
    return scales


def round_activations(x: Float32Array, grid: Grid) -> Float32Array:
    """Return activations, (n_tokens, n_features), as they come back from their bytes."""
    scales = token_scales(x, grid)
    steps = np.clip(np.rint(x / scales), -grid.zero_point, LARGEST_ACTIVATION - grid.zero_point)
    return np.asarray(steps * scales, np.float32)


def weight_scales(weight: Float32Array) -> Float32Array:
    """Return the scale of each output of (n_out, n_in), (n_out,), by the clip with the least squared error."""
    largest = np.maximum(np.abs(weight).max(axis=1), TINIEST_SCALE)
    candidates = [largest * np.float32(clip / LARGEST_WEIGHT) for clip in _CLIPS]
    errors = [((quantize(weight, scales) * scales[:, None] - weight) ** 2).sum(axis=1) for scales in candidates]
    best = np.argmin(errors, axis=0)
    chosen: Float32Array = np.stack(candidates)[best, np.arange(len(largest))]
    return chosen


def quantize(weight: Float32Array, scales: Float32Array) -> Int8Array:
    """Return weights, (n_out, n_in), as 8-bit integers in units of their output's scale, each the nearest."""
    return np.asarray(np.clip(np.rint(weight / scales[:, None]), -LARGEST_WEIGHT, LARGEST_WEIGHT), np.int8)


def halves_of(integers: Int8Array, is_upper: BoolArray) -> Int8Array:
    """Return the 7-bit weights of the graph for AVX2: the lower half of each integer, or the one above it."""
    return np.asarray((integers >> 1) + is_upper, np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How a layer's weights are rounded so that errors make up for one another.

    order     (n_in,) of the inputs, the one that is rounded last first
    carried   (n_in, n_in), in that order: the share of the j-th's error by which the i-th's weight moves, i < j
    """

    order: Int64Array
    carried: Float32Array

    @classmethod
    def by(cls, hessian: Float32Array) -> "Rounding":
        """Return the rounding for inputs whose products with one another sum up to this, (n_in, n_in)."""
        size = len(hessian)
        # The largest first, while all others can still make up for them.
        order = np.argsort(np.diag(hessian), kind="stable")
        damped = hessian[np.ix_(order, order)].astype(np.float64)
        damped[np.diag_indices(size)] += max(_DAMPING * float(np.trace(hessian)) / size, float(TINIEST_SCALE))
        lower = np.linalg.cholesky(damped)
        return cls(order=order, carried=np.ascontiguousarray((lower / np.diag(lower)).T, np.float32))

    def integers(self, weight: Float32Array, scales: Float32Array) -> Int8Array:
        """Return weights, (n_out, n_in), as 8-bit integers in units of their output's scale."""
        lowest = np.full(weight.shape, -LARGEST_WEIGHT, np.int8)
        return self._round(weight / scales[:, None], lowest, -lowest)

    def is_upper(self, weight: Float32Array, scales: Float32Array, integers: Int8Array) -> BoolArray:
        """Return which integers take the upper half. Errors are carried here as well."""
        lower = integers >> 1
        lowest, highest = np.maximum(lower, -LARGEST_HALF), np.minimum(lower + np.int8(1), LARGEST_HALF)
        halves = self._round(weight / (2 * scales[:, None]), lowest, highest)
        return np.asarray(halves > lower, np.bool_)

    def _round(self, steps: Float32Array, lowest: Int8Array, highest: Int8Array) -> Int8Array:
        """Return integers between two bounds, all (n_out, n_in)."""
        exact = np.ascontiguousarray(steps.T[self.order])
        low, high = lowest.T[self.order], highest.T[self.order]
        found, errors = np.empty_like(low), np.zeros_like(exact)
        for stop in range(len(exact), 0, -_N_TOGETHER):
            start = max(0, stop - _N_TOGETHER)
            wanted = exact[start:stop] + self.carried[start:stop, stop:] @ errors[stop:]
            for i in range(stop - 1, start - 1, -1):
                near = self.carried[i, i + 1 : stop] @ errors[i + 1 : stop]
                found[i] = np.clip(np.rint(wanted[i - start] + near), low[i], high[i])
                errors[i] = exact[i] - found[i]
        integers: Int8Array = np.empty_like(found)
        integers[self.order] = found
        return integers.T


def row_scales(rows: Float32Array) -> Float32Array:
    """Return the scale of each row of a table of vectors, (n_rows, 1). Nothing sums them up: they have 8 bits."""
    scales: Float32Array = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / np.float32(127), TINIEST_SCALE)
    return scales


def quantize_rows(rows: Float32Array, scales: Float32Array) -> Int8Array:
    """Return rows of a table as 8-bit integers in units of their scale."""
    integers: Int8Array = np.rint(rows / scales).astype(np.int8)
    return integers


def divisors(largest_activation: Float32Array, largest_weight: Float32Array, strength: float) -> Float32Array:
    """Return by what to divide each input channel, (n_in,), so that outliers move from activations into weights.

    SmoothQuant's rule (Xiao et al., 2022, equation 4): max|x| ** strength / max|w| ** (1 - strength). The weights are
    multiplied by the same, so the product stays what it was. Channels that are never used stay as they are.
    """
    is_used = (largest_activation > 0) & (largest_weight > 0)
    x, w = (np.where(is_used, values, 1.0) for values in (largest_activation, largest_weight))
    found = x**strength / w ** (1 - strength)
    return np.where(is_used, found / np.exp(np.log(found).mean()), 1.0).astype(np.float32)
