"""How a model is rounded to 8 bits: its scales, and the layers that are too delicate. Found before it is written.

Runs the PyTorch model on text. Each group of linear layers that read the same activations gets divisors, which move
outlier channels from the activations into the weights. A layer's cost is the drift of the logit that its rounding
causes. The costliest layers stay in fp32, or on a GPU in fp16, until the whole is within its limits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from rankrt.artifact.manifest import KeptLayer
from rankrt.artifact.precisions import TARGETS, VariantKey
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.calibrate.layers import layers_of
from rankrt_export.calibrate.model import (
    ModelOnText,
    RoundedLayer,
    load_on_text,
    round_layers,
    rounded,
    see,
)
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.errors import CheckpointError, VariantError
from rankrt_export.precision.int8_numbers import TINIEST_SCALE
from rankrt_export.precision.methods import calibrated_method
from rankrt_export.precision.recipes import LayerGroup, LayerRecipe, Recipe, TableRecipe
from rankrt_export.reference.pytorch_decoder import Asked
from rankrt_export.text.ranks import mean_tau
from rankrt_export.text.texts import Texts
from rankrt_export.verify.verify import Limits, Progress

Float64Array = npt.NDArray[np.float64]

# What the calibration text may use of the drift that other text is allowed.
_SHARE_OF_LIMIT = 0.7
# Half precision doubles a table's size and costs no time: it is worth it where 8 bits would use up the limit.
_TABLES_SHARE_OF_LIMIT = 0.25
# Below this share a variant is hardly faster than fp32 and only less exact.
LEAST_INT8_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifts:
    """What rounding costs, layer by layer.

    layers     the costliest first: by the variance of the drift for a multiply-add
    of_pairs   (n_layers, n_pairs) what a layer's rounding adds to each pair's logit, to the first order
    n_weights  (n_layers,) the multiply-adds of a token
    """

    layers: tuple[str, ...]
    of_pairs: Float64Array
    n_weights: Float64Array

    @property
    def costs(self) -> Float64Array:
        """The drift, root mean square over the pairs, that rounding each layer alone causes, (n_layers,)."""
        return np.asarray(np.sqrt((self.of_pairs**2).mean(axis=1)))

    def after(self, n_kept: int) -> float:
        """Return the drift, root mean square over the pairs, if so many of the costliest layers are not rounded."""
        return float(np.sqrt((self.of_pairs[n_kept:].sum(axis=0) ** 2).mean()))

    def share(self, n_kept: int) -> float:
        """Return the share of the multiply-adds that are in 8 bits then."""
        return float(self.n_weights[n_kept:].sum() / self.n_weights.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What calibrating a variant found, from which recipes with more or less in 8 bits are made.

    layers  the recipes of all linear layers
    n_kept  how many of the costliest are not rounded, so that the calibration text is within the limits
    """

    key: VariantKey
    layers: Mapping[str, LayerRecipe]
    tables: Mapping[str, TableRecipe]
    drifts: Drifts
    n_kept: int
    text_sha256: str

    def recipe(self, n_kept: int) -> Recipe:
        """Return the recipe that leaves so many layers as they are."""
        names = self.drifts.layers
        kept = zip(names[:n_kept], self.drifts.costs[:n_kept].tolist(), strict=True)
        return Recipe(
            key=self.key,
            layers={name: self.layers[name] for name in names[n_kept:]},
            tables=self.tables,
            kept=tuple(KeptLayer(name=name, drift=cost) for name, cost in kept),
            share=self.drifts.share(n_kept),
            text_sha256=self.text_sha256,
        )

    def tighten(self, recipe: Recipe, factor: float) -> Recipe | None:
        """Return a recipe with that share of the drift, by the estimate; None if too little int8 is left.

        Tables go to half precision at once: that costs size, but no time.
        """
        bound = factor * self.drifts.after(len(recipe.kept))
        n_kept = len(recipe.kept) + 1
        while n_kept <= len(self.layers) and self.drifts.after(n_kept) > bound:
            n_kept += 1
        if self.drifts.share(n_kept) < LEAST_INT8_SHARE:
            return None
        return replace(self.recipe(n_kept), tables={})


def calibrate(
    checkpoint: Checkpoint,
    texts: Texts,
    limits: Mapping[VariantKey, Limits],
    progress: Progress = lambda n_done: None,
    asked: Asked | None = None,
) -> tuple[dict[VariantKey, Calibration], list[VariantError]]:
    """Find scales, costs, and the most int8 within the limits on the text, for each variant that has limits.

    Return what was found, and an error for each variant whose limits cannot be met. `progress` is told of pairs done;
    `asked` says how a decoder is asked. Raises CheckpointError for an architecture that is traced.
    """
    if checkpoint.architecture not in ARCHITECTURES:
        raise CheckpointError(f"{checkpoint.architecture} is traced; int8 is for {', '.join(ARCHITECTURES)}")
    on_text = load_on_text(checkpoint, texts, progress, asked)
    layers = layers_of(checkpoint, asked.readout if asked else None)
    with_tables = [key for key in limits if calibrated_method(key).has_tables]
    tables = _choose_tables(on_text, checkpoint, layers.tables, [limits[key] for key in with_tables])
    # Variants that round alike are calibrated once.
    alike: dict[VariantKey, list[VariantKey]] = {}
    for key in limits:
        alike.setdefault(key.rounded_as, []).append(key)
    recipes = _choose_recipes(on_text, layers.groups, alike)
    found: dict[VariantKey, Calibration] = {}
    failures: list[VariantError] = []
    for rounded_as, keys in alike.items():
        # A GPU has the room for tables in half precision, which costs nothing there.
        of_keys = tables if keys[0] in with_tables else {}
        try:
            shared = _calibrate_variant(rounded_as, on_text, recipes.pop(rounded_as), of_keys, limits[keys[0]])
            found |= {key: replace(shared, key=key) for key in keys}
        except VariantError as error:
            failures += [VariantError(str(error), variant=key, excess=error.excess) for key in keys]
    return found, failures


def _choose_tables(
    on_text: ModelOnText, checkpoint: Checkpoint, names: Sequence[str], limits: Sequence[Limits]
) -> dict[str, TableRecipe]:
    """Return how each table is rounded, if one of the ways leaves most of the limits to the layers."""
    if not limits:
        return {}
    max_drift = min(limit.max_difference for limit in limits) * _TABLES_SHARE_OF_LIMIT
    chosen = {}
    for name in names:
        blocks = checkpoint.weights.blocks(f"{name}.weight")
        factors = np.maximum.reduce([np.abs(block).max(axis=0) for block in blocks])
        recipes = [TableRecipe(factors=None), TableRecipe(factors=np.maximum(factors, TINIEST_SCALE))]
        drifts = []
        for recipe in recipes:
            with rounded(on_text, [], {name: recipe}):
                drifts.append(on_text.drift())
        if min(drifts) <= max_drift:
            chosen[name] = recipes[int(np.argmin(drifts))]
    return chosen


def _choose_recipes(
    on_text: ModelOnText, groups: Sequence[LayerGroup], keys: Iterable[VariantKey]
) -> dict[VariantKey, dict[str, LayerRecipe]]:
    """Return the recipes of all layers for each variant. Instruction sets share what is found."""
    seen = see(on_text, groups)
    recipes: dict[VariantKey, dict[str, LayerRecipe]] = {key: {} for key in keys}
    methods = {(key.target, key.precision): calibrated_method(key) for key in recipes}
    for group in groups:
        weights, of_group = [on_text.weight(name) for name in group.layers], seen.pop(group.layers[0])
        found = {of: method.layer_recipes(group, weights, of_group) for of, method in methods.items()}
        for key, layers in recipes.items():
            own = [recipe.for_instruction_set(key.instruction_set) for recipe in found[key.target, key.precision]]
            layers |= zip(group.layers, own, strict=True)
    return recipes


def _calibrate_variant(
    key: VariantKey,
    on_text: ModelOnText,
    recipes: Mapping[str, LayerRecipe],
    tables: Mapping[str, TableRecipe],
    limits: Limits,
) -> Calibration:
    layers = round_layers(on_text, recipes)
    drifts = measure_drifts(on_text, layers)

    @cache
    def drift_and_tau(n_kept: int) -> tuple[float, float]:
        with rounded(on_text, [layers[name] for name in drifts.layers[n_kept:]], tables):
            logits = on_text.scores()
        return float(np.abs(logits - on_text.logits).max()), mean_tau(logits, on_text.logits, on_text.texts)

    return Calibration(
        key=key,
        layers=recipes,
        tables=tables,
        drifts=drifts,
        n_kept=fewest_kept(key, drifts, drift_and_tau, limits),
        text_sha256=on_text.texts.sha256,
    )


def measure_drifts(on_text: ModelOnText, layers: Mapping[str, RoundedLayer]) -> Drifts:
    """Measure what each layer's rounding adds to each pair's logit, to the first order.

    It is the gradient of the logit with respect to the layer's output, times the output's error. So all layers are
    measured in one pass forward and back, and not in a pass for each.
    """
    runs = [
        [layer.first_order_drift(passages[name]) for name, layer in layers.items()]
        for passages in on_text.watch(layers)
    ]
    of_pairs = np.ascontiguousarray(np.array(runs, np.float64).T)
    n_weights = np.array([layer.n_weights for layer in layers.values()], np.float64)
    # Variances add up, and so do multiply-adds: a price is the variance that a layer's speed is paid with.
    prices = (of_pairs**2).mean(axis=1) / n_weights
    order = np.argsort(-prices, kind="stable")
    names = list(layers)
    return Drifts(layers=tuple(names[i] for i in order), of_pairs=of_pairs[order], n_weights=n_weights[order])


def fewest_kept(
    key: VariantKey, drifts: Drifts, drift_and_tau: Callable[[int], tuple[float, float]], limits: Limits
) -> int:
    """Return how many of the costliest layers must not be rounded, by bisection. More never hurts much.

    `drift_and_tau` measures the largest drift and the mean tau with so many. Raises VariantError if so many would have
    to that the rest is not worth it.
    """

    def is_enough(n_kept: int) -> bool:
        drift, tau = drift_and_tau(n_kept)
        return drift <= limits.max_difference * _SHARE_OF_LIMIT and tau >= limits.min_tau

    if is_enough(0):
        return 0
    n_layers = len(drifts.layers)
    too_few, enough = 0, sum(drifts.share(n) >= LEAST_INT8_SHARE for n in range(1, n_layers + 1))
    if not is_enough(enough):
        drift, tau = drift_and_tau(enough)
        kept = f"{enough} of {n_layers} layers in {TARGETS[key.target].unquantized}"
        raise VariantError(
            f"{key.precision} for {key.instruction_set or key.target} is not written: it cannot be within"
            f" {limits.max_difference:.2g} of PyTorch on the calibration text. With {kept} it still differs by"
            f" {drift:.2g}, with a mean Kendall's tau of {tau:.3f} (at least {limits.min_tau:g})",
            variant=key,
            excess=max(1.0, drift / limits.max_difference),
        )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough
