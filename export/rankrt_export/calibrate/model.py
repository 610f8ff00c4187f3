"""The PyTorch model on the text that it is calibrated on: what its layers read, and what it answers when some round.

Knows no limits and no variants. The model is changed by context managers only, which put it back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.precision.recipes import LayerGroup, LayerRecipe, Seen, TableRecipe
from rankrt_export.reference.pytorch import Row, load_model, scores, tensors, tokenized
from rankrt_export.reference.pytorch_decoder import Asked
from rankrt_export.text.texts import Texts
from rankrt_export.verify.verify import Progress

# Costs are sums over a sentence or two, so short rows tell as much as long ones.
N_PAIRS, N_TOKENS = 64, 160
_N_PASSAGES_OF_QUESTION = 8
# How much a token counts when weights are rounded, whatever the logit's gradient at it. Without gradients at all the
# tiny trained model's graph for AVX2 drifted by 0.14, with this or a third of it by 0.10: of the last layer the logit
# sees the first token alone.
_SHARE_OF_ALL_TOKENS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOnText:
    """A PyTorch model and the rows that it scores.

    texts   few questions of those that were given
    rows    of all their pairs
    logits  (n_pairs,) of the model as it was trained
    """

    model: Any
    texts: Texts
    rows: Sequence[Row]
    logits: Float32Array
    progress: Progress

    def scores(self) -> Float32Array:
        """Return the logits of the model as it is now, (n_pairs,)."""
        return scores(self.model, self.rows, self.progress)

    def drift(self) -> float:
        """Return the largest difference of the logits from the trained model's."""
        return float(np.abs(self.scores() - self.logits).max())

    def weight(self, layer: str) -> Float32Array:
        """Return a layer's weights, (n_out, n_in)."""
        weight: Float32Array = self.model.get_submodule(layer).weight.numpy()
        return weight

    def watch(self, layers: Iterable[str]) -> Iterator[Mapping[str, "Passage"]]:
        """Run each row forward and back; yield, by layer, what passed: it is only there until the next is yielded."""
        import torch

        passages = {name: Passage(self.model.get_submodule(name)) for name in layers}
        with ExitStack() as hooks:
            for passage in passages.values():
                hooks.callback(passage.module.register_forward_hook(passage.remember).remove)
            for row in self.rows:
                with torch.enable_grad():
                    self.model(**tensors(row)).logits[0, 0].backward()
                yield passages
                self.progress(1)


def load_on_text(checkpoint: Checkpoint, texts: Texts, progress: Progress, asked: Asked | None = None) -> ModelOnText:
    """Load the model of a checkpoint and score a few pairs of the texts; `asked` says how a decoder is asked."""
    texts = few_pairs(texts)
    n_tokens = min(N_TOKENS, checkpoint.max_length)
    if asked is None:
        rows, model = tokenized(checkpoint, texts.pairs, n_tokens), load_model(checkpoint)
    else:
        rows, model = asked.rows(checkpoint, texts.pairs, n_tokens), asked.model(checkpoint)
    model.requires_grad_(False)
    _part_from_distances(model)
    logits = scores(model, rows, progress)
    return ModelOnText(model=model, texts=texts, rows=rows, logits=logits, progress=progress)


def _part_from_distances(model: Any) -> None:
    """Let DeBERTa's vectors of distances pass copies of the layers that they share with tokens.

    The graph has what these layers make of them, in fp32. So the layers are watched, and rounded, for tokens alone.
    """
    for attention in model.modules():
        if getattr(attention, "share_att_key", False):
            attention.pos_key_proj = deepcopy(attention.key_proj)
            attention.pos_query_proj = deepcopy(attention.query_proj)
            attention.share_att_key = False


def few_pairs(texts: Texts) -> Texts:
    """Return questions evenly chosen, with a few passages each, that make about `N_PAIRS` pairs."""
    n_questions = max(1, N_PAIRS // _N_PASSAGES_OF_QUESTION)
    step = max(1, len(texts.questions) / n_questions)
    chosen = [texts.questions[int(i * step)] for i in range(min(n_questions, len(texts.questions)))]
    return Texts(questions=[question.first(_N_PASSAGES_OF_QUESTION) for question in chosen], sha256=texts.sha256)


def see(on_text: ModelOnText, groups: Sequence[LayerGroup]) -> dict[str, Seen]:
    """Return what each group of layers, by the name of its first, reads of the text, and how much each row counts.

    A token counts by the square of the logit's gradient with respect to what a layer makes of it.
    """
    rows: dict[str, list[Float32Array]] = {group.layers[0]: [] for group in groups}
    shares: dict[str, list[Float32Array]] = {name: [] for group in groups for name in group.layers}
    for passages in on_text.watch(shares):
        for name, found in rows.items():
            found.append(passages[name].rows)
        for name, found in shares.items():
            found.append(passages[name].shares)
    return {
        group.layers[0]: Seen(
            rows=np.concatenate(rows.pop(group.layers[0])),
            shares=[np.concatenate(shares[name]) for name in group.layers],
        )
        for group in groups
    }


class Passage:
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


class RoundedLayer:
    """A linear layer of the PyTorch model, and what a recipe would make of it."""

    def __init__(self, module: Any, recipe: LayerRecipe) -> None:
        import torch

        self.module = module
        self._recipe = recipe
        self._weight = torch.from_numpy(recipe.weights(module.weight.numpy()))

    @property
    def n_weights(self) -> int:
        """The multiply-adds for one token."""
        return int(self._weight.numel())

    def forward(self, x: Any) -> Any:
        """Return the product of rounded activations and rounded weights, and the bias."""
        import torch

        rounded = torch.from_numpy(self._recipe.round(x.detach().reshape(-1, x.shape[-1]).numpy()))
        return torch.nn.functional.linear(rounded, self._weight, self.module.bias).reshape(*x.shape[:-1], -1)

    def first_order_drift(self, passage: Passage) -> float:
        """Return what the layer's rounding adds to the logit of the run that was watched, to the first order."""
        import torch

        with torch.no_grad():
            error = self.forward(passage.input) - passage.output
            return float((passage.output.grad * error).sum())


def round_layers(on_text: ModelOnText, recipes: Mapping[str, LayerRecipe]) -> dict[str, RoundedLayer]:
    """Return the layers, by name, with their weights rounded. The model stays as it is."""
    return {name: RoundedLayer(on_text.model.get_submodule(name), recipe) for name, recipe in recipes.items()}


@contextmanager
def rounded(
    on_text: ModelOnText, layers: Iterable[RoundedLayer], tables: Mapping[str, TableRecipe]
) -> Iterator[ModelOnText]:
    """Let the model compute these layers and tables rounded, while the context lasts."""
    with ExitStack() as changes:
        for layer in layers:
            layer.module.forward = layer.forward
            changes.callback(delattr, layer.module, "forward")
        for name, recipe in tables.items():
            table = on_text.model.get_submodule(name)
            changes.callback(table.register_forward_hook(_rounding_hook(recipe)).remove)
        yield on_text


def _rounding_hook(recipe: TableRecipe) -> Callable[..., Any]:
    import torch

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        rows = output.reshape(-1, output.shape[-1]).numpy()
        return torch.from_numpy(recipe.round(rows)).reshape(output.shape)

    return hook
