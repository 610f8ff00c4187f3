"""How layers and tables are computed in 8 bits. Knows no model.

Layers that read the same activations share one rounding of them. `group_recipes` chooses what moves outlier channels
from the activations into the weights by the error in the layers' outputs, on rows of activations that it is given, and
rounds the weights for these rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from rankrt.arrays import BoolArray, Float32Array
from rankrt.artifact.manifest import KeptLayer, Quantization
from rankrt.artifact.precisions import InstructionSet, VariantKey
from rankrt_export.precision.int8_numbers import (
    GELU_MINIMUM,
    SYMMETRIC,
    Grid,
    Int8Array,
    Rounding,
    divisors,
    halves_of,
    one_sided,
    quantize,
    quantize_rows,
    round_activations,
    row_scales,
    weight_scales,
)

# 0 means without divisors; SmoothQuant recommends 0.5, and 0.75 for models with strong outliers.
STRENGTHS = (0.0, 0.3, 0.5, 0.65, 0.8)
# Rows of activations by which the divisors of a group are chosen.
_N_SAMPLED_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Linear layers, by name, that read the same activations, and whether these come from a GELU."""

    layers: tuple[str, ...]
    is_after_gelu: bool


class LayerRounding(Protocol):
    """What rounding makes of one linear layer."""

    def round(self, x: Float32Array) -> Float32Array:
        """Return activations, (n_tokens, n_in), as they are multiplied with the weights."""
        ...

    def weights(self, weight: Float32Array) -> Float32Array:
        """Return the layer's weights, (n_out, n_in), as they come back from what is multiplied."""
        ...


class LayerRecipe(LayerRounding, Protocol):
    """How one linear layer is computed in 8 bits."""

    def for_instruction_set(self, name: InstructionSet | None) -> Self:
        """Return the recipe for processors that have an instruction set; None is for all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the values of a linear layer are brought to the range of a byte: each token has a scale of its own.

    divisors  (n_in,) what the activations are divided by and the weights multiplied with; None for nothing
    grid      the byte's values for the activations, as they are after the division
    scales    (n_out,) of the weights
    """

    divisors: Float32Array | None
    grid: Grid
    scales: Float32Array

    def multiply(self, weight: Float32Array) -> Float32Array:
        """Return the layer's weights, (n_out, n_in), for divided activations."""
        return weight if self.divisors is None else weight * self.divisors

    def round(self, x: Float32Array) -> Float32Array:
        """Return activations, (n_tokens, n_in), as they are multiplied with the weights."""
        return round_activations(x if self.divisors is None else x / self.divisors, self.grid)

    def weights(self, weight: Float32Array) -> Float32Array:
        """Return the layer's weights, (n_out, n_in), as they come back if each is rounded to the nearest."""
        return np.asarray(quantize(self.multiply(weight), self.scales) * self.scales[:, None], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecipe(Scaling):
    """How one linear layer is computed in int8 on a CPU.

    integers  (n_out, n_in) the weights, as they are stored
    is_upper  (n_out, n_in) of which weights the half that the graph for AVX2 takes is the upper one
    instruction_set  "avx2" has 7 bits for weights, all others 8
    """

    integers: Int8Array
    is_upper: BoolArray
    instruction_set: InstructionSet | None = None

    @property
    def n_out(self) -> int:
        """The outputs of the layer."""
        return int(self.integers.shape[0])

    @property
    def n_in(self) -> int:
        """The inputs of the layer."""
        return int(self.integers.shape[1])

    @property
    def factors(self) -> Float32Array:
        """What the activations are multiplied with, (n_in,), where there are divisors."""
        assert self.divisors is not None, "it is asked for only where there are some"
        return np.asarray(np.float32(1) / self.divisors)

    def weights(self, weight: Float32Array) -> Float32Array:
        """Return the layer's weights as they come back from what the instruction set multiplies; they are known."""
        if self.instruction_set == "avx2":
            return np.asarray(halves_of(self.integers, self.is_upper) * (2 * self.scales[:, None]), np.float32)
        return np.asarray(self.integers * self.scales[:, None], np.float32)

    def for_instruction_set(self, name: InstructionSet | None) -> Self:
        """Return the same integers, of which an instruction set multiplies its own part."""
        return replace(self, instruction_set=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRecipe:
    """How a table of vectors is stored in int8: each row has a scale of its own.

    factors  (n_features,) what each column is divided by before, so that no column makes all others coarse; or None
    """

    factors: Float32Array | None

    def blocks(self, rows: Iterable[Float32Array]) -> Iterator[tuple[Int8Array, Float32Array]]:
        """Yield the integers and the scales, (n, 1), of blocks of rows, (n, n_features)."""
        for block in rows:
            divided = block if self.factors is None else block / self.factors
            scales = row_scales(divided)
            yield quantize_rows(divided, scales), scales

    def round(self, rows: Float32Array) -> Float32Array:
        """Return rows as they come back from their bytes."""
        ((integers, scales),) = self.blocks([rows])
        found: Float32Array = integers * scales
        return found if self.factors is None else found * self.factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Which layers of a variant are computed in 8 bits, and how; which are not, and what they would have cost.

    layers       each a recipe of the method's own class
    tables       those stored in int8; the others are stored in half precision
    share        of the multiply-adds of all these layers that are in 8 bits
    text_sha256  the text it was calibrated on
    """

    key: VariantKey
    layers: Mapping[str, Any]
    tables: Mapping[str, TableRecipe]
    kept: tuple[KeptLayer, ...]
    share: float
    text_sha256: str

    @property
    def summary(self) -> Quantization:
        """What the manifest says of it."""
        return Quantization(int8_share=self.share, kept=self.kept, text_sha256=self.text_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a group of layers reads of the text.

    rows    (n_tokens, n_in) of activations
    shares  (n_tokens,) for each layer: how much a token counts, 1 in the mean
    """

    rows: Float32Array
    shares: Sequence[Float32Array]

    @property
    def largest(self) -> Float32Array:
        """The largest |activation| of each input, (n_in,)."""
        return np.asarray(np.abs(self.rows).max(axis=0), np.float32)

    @property
    def sampled(self) -> Float32Array:
        """A few of the rows."""
        return self.rows[:: max(1, len(self.rows) // _N_SAMPLED_ROWS)]


def group_recipes(group: LayerGroup, weights: Sequence[Float32Array], seen: Seen) -> list[TokenRecipe]:
    """Return the recipes of layers that read the same activations; weights are (n_out, n_in) each."""
    scalings = group_scalings(group, weights, seen)
    x = scalings[0].round(seen.rows)
    return [
        token_recipe(scaling, weight, Rounding.by(np.asarray((x * of_layer[:, None]).T @ x)))
        for scaling, weight, of_layer in zip(scalings, weights, seen.shares, strict=True)
    ]


def token_recipe(scaling: Scaling, weight: Float32Array, rounding: Rounding) -> TokenRecipe:
    """Return the recipe of one layer, its weights, (n_out, n_in), rounded."""
    multiplied = scaling.multiply(weight)
    integers = rounding.integers(multiplied, scaling.scales)
    return TokenRecipe(
        divisors=scaling.divisors,
        grid=scaling.grid,
        scales=scaling.scales,
        integers=integers,
        is_upper=rounding.is_upper(multiplied, scaling.scales, integers),
    )


def group_scalings(group: LayerGroup, weights: Sequence[Float32Array], seen: Seen) -> list[Scaling]:
    """Return the scalings of layers that read the same rows: the strength with the least error in their outputs."""
    largest, sampled = seen.largest, seen.sampled
    exact = [sampled @ weight.T for weight in weights]
    trials = [_scalings(group, weights, largest, strength) for strength in STRENGTHS]
    return min(trials, key=lambda scalings: output_error(scalings, weights, sampled, exact))


def output_error(
    recipes: Sequence[LayerRounding],
    weights: Sequence[Float32Array],
    sampled: Float32Array,
    exact: Sequence[Float32Array],
) -> float:
    """Return the squared error of the outputs of a group, each layer's relative to its own size."""
    rounded = recipes[0].round(sampled)
    errors = 0.0
    for recipe, weight, output in zip(recipes, weights, exact, strict=True):
        found = rounded @ recipe.weights(weight).T
        errors += float(((found - output) ** 2).sum() / (output**2).sum())
    return errors


def _scalings(
    group: LayerGroup, weights: Sequence[Float32Array], largest: Float32Array, strength: float
) -> list[Scaling]:
    by = divisors(largest, np.abs(np.concatenate(weights)).max(axis=0), strength) if strength else None
    grid = SYMMETRIC
    if group.is_after_gelu:
        grid = one_sided(GELU_MINIMUM if by is None else GELU_MINIMUM / float(by.min()))
    scales = [weight_scales(weight if by is None else weight * by) for weight in weights]
    return [Scaling(divisors=by, grid=grid, scales=of_layer) for of_layer in scales]
