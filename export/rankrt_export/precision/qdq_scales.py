"""8 bits with scales that are fixed beforehand, as TensorRT computes with them. Numbers only, no model.

One scale for all activations that a layer reads, which calibration finds, and for weights one for each output (int8) or
one for all (fp8); all symmetric, since TensorRT has no zero points. Scales are numbers of half precision: a strongly
typed graph wants them in the type of the states, and gives what comes back that type. Rounding goes to the nearest, to
even where two are, and what is beyond the ends becomes the ends (TensorRT's guide, "Quantization Schemes").
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import InstructionSet
from rankrt_export.precision.int8_numbers import LARGEST_WEIGHT, divisors, weight_scales
from rankrt_export.precision.recipes import STRENGTHS, output_error

# Steps or numbers of 8 bits, in the type that they are stored in.
StoredArray = npt.NDArray[Any]
# Where activations are cut off, in shares of the largest on the text: what that costs a few makes all others finer.
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_SMALLEST, _LARGEST = np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Numbers of 8 bits.

    lowest, highest  what activations are cut off at, in steps; weights are at `highest` on either side
    is_integer       evenly spaced; else finer near zero, so that outliers cost the others little
    """

    dtype: np.dtype[Any]
    lowest: int
    highest: int
    is_integer: bool

    def quantize(self, steps: Float32Array) -> StoredArray:
        """Return the nearest numbers that there are."""
        within = np.clip(steps, self.lowest, self.highest)
        return np.asarray(np.rint(within) if self.is_integer else within).astype(self.dtype)


INT8 = Format(dtype=np.dtype(np.int8), lowest=-128, highest=LARGEST_WEIGHT, is_integer=True)
# E4M3 has a sign, 4 bits of exponent and 3 of mantissa, and no infinity.
FP8 = Format(dtype=np.dtype(ml_dtypes.float8_e4m3fn), lowest=-448, highest=448, is_integer=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRecipe:
    """How one linear layer is computed with fixed scales.

    factors  (n_in,) what the activations are multiplied with and the weights divided by; None for nothing
    step     the scale of the activations, as they are after the multiplication
    scales   (n_out,) of the weights, or () for one
    """

    format: Format
    factors: Float32Array | None
    step: np.float32
    scales: Float32Array

    def activations(self, x: Float32Array) -> StoredArray:
        """Return activations, (n_tokens, n_in), in 8 bits."""
        return self.format.quantize((x if self.factors is None else x * self.factors) / self.step)

    def quantize(self, weight: Float32Array) -> StoredArray:
        """Return the layer's weights, (n_out, n_in), in 8 bits."""
        steps = (weight if self.factors is None else weight / self.factors) / self.scales[..., None]
        return self.format.quantize(np.clip(steps, -self.format.highest, self.format.highest))

    def round(self, x: Float32Array) -> Float32Array:
        """Return activations, (n_tokens, n_in), as they are multiplied with the weights."""
        return np.asarray(self.activations(x).astype(np.float32) * self.step, np.float32)

    def weights(self, weight: Float32Array) -> Float32Array:
        """Return the layer's weights, (n_out, n_in), as they come back from their 8 bits."""
        return np.asarray(self.quantize(weight).astype(np.float32) * self.scales[..., None], np.float32)

    def for_instruction_set(self, name: InstructionSet | None) -> Self:
        """Return the same: a GPU has none."""
        return self


def fixed_recipes(
    format_: Format, weights: Sequence[Float32Array], largest: Float32Array, sampled: Float32Array
) -> list[FixedRecipe]:
    """Return the recipes of layers that read the same activations: those with the least error in their outputs.

    weights (n_out, n_in) each; largest |activation| (n_in,) on the text; some rows of activations (n_rows, n_in)
    """
    exact = [sampled @ weight.T for weight in weights]

    def best(trials: Iterable[list[FixedRecipe]]) -> list[FixedRecipe]:
        return min(trials, key=lambda recipes: output_error(recipes, weights, sampled, exact))

    if not format_.is_integer:
        return _recipes(format_, weights, largest, None)
    found = best(_recipes(format_, weights, largest, _factors(weights, largest, strength)) for strength in STRENGTHS)
    return best([replace(recipe, step=half(recipe.step * clip)) for recipe in found] for clip in _CLIPS)


def _recipes(
    format_: Format, weights: Sequence[Float32Array], largest: Float32Array, factors: Float32Array | None
) -> list[FixedRecipe]:
    """Return recipes that cut nothing off."""
    reach = (largest if factors is None else largest * factors).max()
    scales = [_scales(format_, weight if factors is None else weight / factors) for weight in weights]
    step = half(reach / np.float32(format_.highest))
    return [FixedRecipe(format=format_, factors=factors, step=step, scales=of_layer) for of_layer in scales]


def _factors(weights: Sequence[Float32Array], largest: Float32Array, strength: float) -> Float32Array | None:
    """Return what moves outliers from the activations into the weights, in numbers of half precision."""
    if not strength:
        return None
    found: Float32Array = half(1 / divisors(largest, np.abs(np.concatenate(weights)).max(axis=0), strength))
    return found


def _scales(format_: Format, weight: Float32Array) -> Float32Array:
    """Return the scales of weights: of numbers that are finer near zero, one scale is as good as many."""
    found: Float32Array = half(
        weight_scales(weight) if format_.is_integer else np.abs(weight).max() / np.float32(format_.highest)
    )
    return found


def half(values: Any) -> Any:
    """Return positive numbers as half precision has them, none of them zero or infinite, in single precision."""
    within = np.clip(np.asarray(values, np.float32), _SMALLEST, _LARGEST)
    return within.astype(np.float16).astype(np.float32)[()]
