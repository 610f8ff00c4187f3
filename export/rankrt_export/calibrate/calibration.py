"""What 8 bits need to know of a model before it is written: scales, and which layers are too delicate for them.

Runs the PyTorch model on text. Each group of linear layers that read the same activations gets divisors that move
outlier channels from the activations into the weights; each layer's cost is measured as the drift of the logit that its
rounding causes; and the costliest layers stay as they are, fp32 or on a GPU fp16, until the whole is within its limits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import KeptLayer, unquantized
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.calibrate.layers import layers_of
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.errors import CheckpointError, VariantError
from rankrt_export.precision.fixed_scales import FORMATS, fixed_recipes
from rankrt_export.precision.int8_numbers import TINIEST_SCALE
from rankrt_export.precision.recipes import (
    KINDS_FOR_CPUS,
    Kind,
    LayerGroup,
    LayerRecipe,
    Recipe,
    Seen,
    TableRecipe,
    group_recipes,
)
from rankrt_export.reference.pytorch import load_model, scores, tensors, tokenized
from rankrt_export.reference.pytorch_decoder import Asked
from rankrt_export.text.ranks import mean_tau
from rankrt_export.text.texts import Texts
from rankrt_export.verify.verify import Limits, Progress

Float64Array = npt.NDArray[np.float64]

# Costs are sums over a sentence or two, so short rows tell as much as long ones.
N_PAIRS, N_TOKENS = 64, 160
_N_PASSAGES_OF_QUESTION = 8
# How much a token counts when weights are rounded, whatever the logit's gradient at it. Without gradients at all the
# tiny trained model's graph for AVX2 drifted by 0.14, with this or a third of it by 0.10: of the last layer the logit
# sees the first token alone.
_SHARE_OF_ALL_TOKENS = 0.3
# What the calibration text may use of the drift that other text is allowed.
_SHARE_OF_LIMIT = 0.7
# Half precision doubles a table's size and costs no time: it is worth it where 8 bits would use up the limit.
_TABLES_SHARE_OF_LIMIT = 0.25
# Below this share a variant is hardly faster than fp32 and only less exact.
LEAST_INT8_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What calibrating for a kind of variant found, from which recipes with more or less in int8 are made.

    recipes      of all linear layers, the costliest first: by the variance of the drift for a multiply-add
    drifts       (n_layers, n_pairs) what each layer's rounding adds to each pair's logit, to the first order
    n_weights    (n_layers,) the multiply-adds of a token
    n_kept       how many of the first stay in fp32 for the calibration text to be within the limits
    """

    kind: Kind
    recipes: Mapping[str, LayerRecipe]
    tables: Mapping[str, TableRecipe]
    drifts: Float64Array
    n_weights: Float64Array
    n_kept: int
    text_sha256: str

    def recipe(self, n_kept: int) -> Recipe:
        """Return the recipe that leaves so many layers in fp32."""
        names = list(self.recipes)
        costs = np.sqrt((self.drifts**2).mean(axis=1))
        kept = zip(names[:n_kept], costs[:n_kept].tolist(), strict=True)
        return Recipe(
            kind=self.kind,
            layers={name: self.recipes[name] for name in names[n_kept:]},
            tables=self.tables,
            kept=tuple(KeptLayer(name=name, drift=cost) for name, cost in kept),
            share=self.share(n_kept),
            text_sha256=self.text_sha256,
        )

    def share(self, n_kept: int) -> float:
        """Return the share of the multiply-adds that are int8."""
        return float(self.n_weights[n_kept:].sum() / self.n_weights.sum())

    def tighter(self, recipe: Recipe, factor: float) -> Recipe | None:
        """Return a recipe with that share of the drift, as far as can be foreseen; None if too little int8 is left.

        Tables go to half precision at once: that costs size, but no time.
        """
        remaining = [np.sqrt((self.drifts[n:].sum(axis=0) ** 2).mean()) for n in range(len(self.recipes) + 1)]
        n_kept = len(recipe.kept) + 1
        while n_kept < len(remaining) and remaining[n_kept] > factor * remaining[len(recipe.kept)]:
            n_kept += 1
        if self.share(n_kept) < LEAST_INT8_SHARE:
            return None
        return replace(self.recipe(n_kept), tables={})


def calibrate(
    checkpoint: Checkpoint,
    texts: Texts,
    limits: Limits,
    kinds: Sequence[Kind] = KINDS_FOR_CPUS,
    progress: Progress = lambda n_done: None,
    asked: Asked | None = None,
) -> tuple[dict[Kind, Calibration], list[VariantError]]:
    """Find scales, costs, and the most int8 that is within the limits on the text; `progress` is told of pairs done.

    Return what was found, and an error for each kind for which the limits cannot be met. `asked` says how a decoder is
    asked. Raises CheckpointError for an architecture that is traced.
    """
    if checkpoint.architecture not in ARCHITECTURES:
        raise CheckpointError(f"{checkpoint.architecture} is traced; int8 is for {', '.join(ARCHITECTURES)}")
    trial = _Trial(checkpoint, texts, limits, kinds, progress, asked)
    found, failures = {}, []
    for kind in kinds:
        if kind != trial.kind:
            trial.round_for(kind)
        try:
            found[kind] = _calibration(trial, texts, limits)
        except VariantError as error:
            failures.append(error)
    return found, failures


def _calibration(trial: "_Trial", texts: Texts, limits: Limits) -> Calibration:
    return Calibration(
        kind=trial.kind,
        recipes={name: trial.recipes[name] for name in trial.costliest},
        tables=trial.tables,
        drifts=np.array([trial.drifts[name] for name in trial.costliest]),
        n_weights=np.array([trial.n_weights(name) for name in trial.costliest], np.float64),
        n_kept=fewest_kept(trial, limits),
        text_sha256=texts.sha256,
    )


def fewest_kept(trial: "_Trial", limits: Limits) -> int:
    """Return how many of the costliest layers have to stay in fp32: found by bisection, as more never hurts much."""
    if trial.meets(0, limits):
        return 0
    too_few, enough = 0, sum(trial.share(n) >= LEAST_INT8_SHARE for n in range(1, len(trial.costliest) + 1))
    if not trial.meets(enough, limits):
        drift, tau = trial.drift_and_tau(enough)
        kept = f"{enough} of {len(trial.costliest)} layers in {unquantized(trial.kind.target)}"
        raise VariantError(
            f"{trial.kind} is not written: it cannot be within {limits.max_difference:.2g} of PyTorch on the"
            f" calibration text. With {kept} it still differs by {drift:.2g}, with a mean Kendall's tau of {tau:.3f}"
            f" (at least {limits.min_tau:g})",
            variant=trial.kind.name,
            excess=max(1.0, drift / limits.max_difference),
        )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if trial.meets(middle, limits) else (middle, enough)
    return enough


def few_pairs(texts: Texts) -> Texts:
    """Return questions evenly chosen, with a few passages each, that make about `N_PAIRS` pairs."""
    n_questions = max(1, N_PAIRS // _N_PASSAGES_OF_QUESTION)
    step = max(1, len(texts.questions) / n_questions)
    chosen = [texts.questions[int(i * step)] for i in range(min(n_questions, len(texts.questions)))]
    return Texts(questions=[question.first(_N_PASSAGES_OF_QUESTION) for question in chosen], sha256=texts.sha256)


class _Trial:
    """The PyTorch model with some of its linear layers replaced by what int8 would compute."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Texts,
        limits: Limits,
        kinds: Sequence[Kind],
        progress: Progress = lambda n_done: None,
        asked: Asked | None = None,
    ) -> None:
        self._texts = few_pairs(texts)
        n_tokens = min(N_TOKENS, checkpoint.max_length)
        if asked is None:
            self._rows = tokenized(checkpoint, self._texts.pairs, n_tokens)
            self._model = load_model(checkpoint).requires_grad_(False)
        else:
            self._rows = asked.rows(checkpoint, self._texts.pairs, n_tokens)
            self._model = asked.model(checkpoint).requires_grad_(False)
        self._progress = progress
        layers = layers_of(checkpoint)
        self._groups = layers.groups
        self._logits = self._scores()
        tables = layers.tables if any(kind.target == "cpu" for kind in kinds) else ()
        self._tables = self._make_tables(checkpoint, tables, limits.max_difference * _TABLES_SHARE_OF_LIMIT)
        self._recipes = self._make_recipes(kinds)
        self.round_for(kinds[0])

    def round_for(self, kind: Kind) -> None:
        """Round the weights as a kind of variant has them, and measure each layer's cost."""
        self.kind, self.recipes = kind, self._recipes[kind]
        # A GPU has the room for half precision, which costs nothing there.
        self.tables = self._tables if kind.target == "cpu" else {}
        self._layers: dict[str, _Int8Layer] = {}  # those of another kind make room first
        self._layers = {
            name: _Int8Layer(self._model.get_submodule(name), recipe) for name, recipe in self.recipes.items()
        }
        self.drifts = self._first_order_drifts()
        self.costliest = sorted(self.recipes, key=self._price, reverse=True)
        self._found: dict[int, tuple[float, float]] = {}

    def cost(self, name: str) -> float:
        """Return the drift, root mean square over the pairs, that rounding this layer alone causes."""
        return float(np.sqrt((self.drifts[name] ** 2).mean()))

    def n_weights(self, name: str) -> int:
        """Return the multiply-adds of a layer for one token."""
        return self._layers[name].n_weights

    def share(self, n_kept: int) -> float:
        """Return the share of the multiply-adds that are int8 if so many layers stay in fp32."""
        sizes = [self.n_weights(name) for name in self.costliest]
        return sum(sizes[n_kept:]) / sum(sizes)

    def meets(self, n_kept: int, limits: Limits) -> bool:
        """Tell whether so many fp32 layers are enough."""
        drift, tau = self.drift_and_tau(n_kept)
        return drift <= limits.max_difference * _SHARE_OF_LIMIT and tau >= limits.min_tau

    def drift_and_tau(self, n_kept: int) -> tuple[float, float]:
        """Return the largest drift and the mean tau with so many layers in fp32."""
        if n_kept not in self._found:
            with self._in_int8(self.costliest[n_kept:]):
                logits = self._scores()
            drift = float(np.abs(logits - self._logits).max())
            self._found[n_kept] = drift, mean_tau(logits, self._logits, self._texts)
        return self._found[n_kept]

    def _make_tables(self, checkpoint: Checkpoint, names: Sequence[str], max_drift: float) -> dict[str, TableRecipe]:
        """Return how each table is stored, as far as one of the ways to round it drifts by no more than this."""
        chosen = {}
        for name in names:
            blocks = checkpoint.weights.blocks(f"{name}.weight")
            factors = np.maximum.reduce([np.abs(block).max(axis=0) for block in blocks])
            recipes = [TableRecipe(factors=None), TableRecipe(factors=np.maximum(factors, TINIEST_SCALE))]
            drifts = [self._drift_of_table(name, recipe) for recipe in recipes]
            if min(drifts) <= max_drift:
                chosen[name] = recipes[int(np.argmin(drifts))]
        return chosen

    def _drift_of_table(self, name: str, recipe: TableRecipe) -> float:
        with self._tables_rounded({name: recipe}):
            return float(np.abs(self._scores() - self._logits).max())

    def _price(self, name: str) -> float:
        """Variances add up, and so do multiply-adds: the variance that a layer's speed is paid with."""
        return self.cost(name) ** 2 / self.n_weights(name)

    def _make_recipes(self, kinds: Sequence[Kind]) -> dict[Kind, dict[str, LayerRecipe]]:
        seen = self._seen()
        recipes: dict[Kind, dict[str, LayerRecipe]] = {kind: {} for kind in kinds}
        for group in self._groups:
            weights = [self._model.get_submodule(name).weight.numpy() for name in group.layers]
            for kind, found in _recipes_of_group(kinds, group, weights, seen.pop(group.layers[0])).items():
                recipes[kind] |= zip(group.layers, found, strict=True)
        return recipes

    def _seen(self) -> dict[str, Seen]:
        """Return what each group of layers, by the name of its first, reads of the text, and how much each row counts.

        A token counts by the square of the logit's gradient with respect to what a layer makes of it.
        """
        watches = {name: _Watch(self._model.get_submodule(name)) for group in self._groups for name in group.layers}
        rows: dict[str, list[Float32Array]] = {group.layers[0]: [] for group in self._groups}
        shares: dict[str, list[Float32Array]] = {name: [] for name in watches}
        for _ in self._gradients(watches.values()):
            for name in rows:
                rows[name].append(watches[name].rows)
            for name in shares:
                shares[name].append(watches[name].shares)
        return {
            group.layers[0]: Seen(
                rows=np.concatenate(rows.pop(group.layers[0])),
                shares=[np.concatenate(shares[name]) for name in group.layers],
            )
            for group in self._groups
        }

    def _gradients(self, watches: "Iterable[_Watch]") -> Iterator[int]:
        """Run each row forward and back, and yield its number while the watches hold what passed."""
        import torch

        hooks = [watch.module.register_forward_hook(watch.remember) for watch in watches]
        try:
            for i, row in enumerate(self._rows):
                with torch.enable_grad():
                    self._model(**tensors(row)).logits[0, 0].backward()
                yield i
                self._progress(1)
        finally:
            for hook in hooks:
                hook.remove()

    def _first_order_drifts(self) -> dict[str, Float64Array]:
        """Return what each layer's rounding adds to each pair's logit, (n_pairs,), to the first order.

        The gradient of the logit with respect to the layer's output, times the output's error: all layers are measured
        in one pass forward and back, where running them one by one would take as many passes as there are layers.
        """
        drifts = {name: np.zeros(len(self._rows)) for name in self._layers}
        watches = {name: _Watch(layer.module) for name, layer in self._layers.items()}
        for i in self._gradients(watches.values()):
            for name, layer in self._layers.items():
                drifts[name][i] = layer.first_order_drift(watches[name])
        return drifts

    def _scores(self) -> Float32Array:
        return scores(self._model, self._rows, self._progress)

    @contextmanager
    def _in_int8(self, names: Sequence[str]) -> Iterator[None]:
        replaced = [self._layers[name] for name in names]
        for layer in replaced:
            layer.module.forward = layer.forward
        try:
            with self._tables_rounded(self.tables):
                yield
        finally:
            for layer in replaced:
                del layer.module.forward

    @contextmanager
    def _tables_rounded(self, recipes: Mapping[str, TableRecipe]) -> Iterator[None]:
        hooks = [
            self._model.get_submodule(name).register_forward_hook(_rounding_hook(recipe))
            for name, recipe in recipes.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _recipes_of_group(
    kinds: Sequence[Kind], group: LayerGroup, weights: Sequence[Float32Array], seen: Seen
) -> dict[Kind, Sequence[LayerRecipe]]:
    """Return the recipes of a group's layers for each kind; those for CPUs are one in two forms."""
    of_cpus = [kind for kind in kinds if kind.target == "cpu"]
    by_token = group_recipes(group, weights, seen) if of_cpus else []
    found: dict[Kind, Sequence[LayerRecipe]] = {
        kind: [replace(recipe, instruction_set=kind.instruction_set) for recipe in by_token] for kind in of_cpus
    }
    for kind in kinds:
        if kind.target != "cpu":
            found[kind] = fixed_recipes(FORMATS[kind.precision], weights, seen.largest, seen.sampled)
    return found


class _Watch:
    """What went into a linear layer and came out of it in one run, and the logit's gradient with respect to that."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.input: Any = None
        self.output: Any = None

    def remember(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep both; this is a forward hook."""
        if not output.requires_grad:
            output.requires_grad_(True)  # nothing before this layer needs a gradient
        output.retain_grad()
        self.input, self.output = inputs[0].detach(), output

    @property
    def rows(self) -> Float32Array:
        """The activations that went in, (n_tokens, n_in)."""
        return np.array(self.input.reshape(-1, self.input.shape[-1]).numpy())

    @property
    def shares(self) -> Float32Array:
        """How much each token counts, (n_tokens,), 1 in the mean."""
        gradient: Float32Array = self.output.grad.reshape(-1, self.output.shape[-1]).numpy()
        squares = (gradient**2).sum(axis=1)
        of_gradient = squares / max(float(squares.mean()), np.finfo(np.float32).tiny)
        return np.asarray(_SHARE_OF_ALL_TOKENS + (1 - _SHARE_OF_ALL_TOKENS) * of_gradient, np.float32)


class _Int8Layer:
    """A linear layer of the PyTorch model, and what int8 would make of it."""

    def __init__(self, module: Any, recipe: LayerRecipe) -> None:
        import torch

        self.module = module
        self._recipe = recipe
        self._weight = torch.from_numpy(recipe.weights(module.weight.numpy()))

    @property
    def n_weights(self) -> int:
        return int(self._weight.numel())

    def forward(self, x: Any) -> Any:
        """Return what int8 would: the product of rounded activations and rounded weights, and the bias."""
        import torch

        rounded = torch.from_numpy(self._recipe.rounded(x.detach().reshape(-1, x.shape[-1]).numpy()))
        return torch.nn.functional.linear(rounded, self._weight, self.module.bias).reshape(*x.shape[:-1], -1)

    def first_order_drift(self, watch: _Watch) -> float:
        """Return what the layer's rounding adds to the logit of the run that was watched, to the first order."""
        import torch

        with torch.no_grad():
            error = self.forward(watch.input) - watch.output
            return float((watch.output.grad * error).sum())


def _rounding_hook(recipe: TableRecipe) -> Callable[..., Any]:
    import torch

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        rows = output.reshape(-1, output.shape[-1]).numpy()
        return torch.from_numpy(recipe.rounded(rows)).reshape(output.shape)

    return hook
