"""Where a lightweight model makes passages shorter, as FlagEmbedding 1.4.2's LightWeightFlagLLMReranker does."""

from collections.abc import Sequence

from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.families import LIGHTWEIGHT
from rankrt_export.errors import CheckpointError, OptionsError

# Those that the model was trained with, and FlagEmbedding names; 1 compresses nothing.
RATIOS = (1, 2, 4, 8)
# FlagEmbedding's default.
_LAYERS = (8,)


def compressions_of(
    checkpoint: Checkpoint, exits: Sequence[int], layers: Sequence[int] | None, ratio: int | None
) -> dict[int, int]:
    """Return how many tokens of a passage become one, by layer, in ascending order.

    Layers from the last exit on have no effect and are left out, as there. Raises CheckpointError for another model and
    for a layer that it lacks. Raises OptionsError for options that change nothing.
    """
    if layers is None and ratio is None:
        return {}
    if checkpoint.architecture != LIGHTWEIGHT:
        raise CheckpointError(
            f"--compress-layers and --compress-ratio are for models that were trained with them, of the class"
            f" {LIGHTWEIGHT}. {checkpoint.id} is a {checkpoint.architecture}. Leave them out"
        )
    if ratio is None:
        raise OptionsError("--compress-layers has no effect without --compress-ratio. Add it, or leave both out")
    if ratio not in RATIOS:
        raise OptionsError(f"--compress-ratio {ratio}: the model was trained with {', '.join(map(str, RATIOS))}")
    asked, n_layers = sorted(set(_LAYERS if layers is None else layers)), int(checkpoint.config["num_hidden_layers"])
    if wrong := [layer for layer in asked if not 0 < layer < n_layers]:
        raise CheckpointError(
            f"--compress-layers {', '.join(map(str, wrong))}: passages can be compressed after layers 1 to"
            f" {n_layers - 1} of this model"
        )
    if ratio == 1:
        return {}
    if not (found := [layer for layer in asked if layer < exits[-1]]):
        raise OptionsError(
            f"--compress-layers {', '.join(map(str, asked))} has no effect: the last cutoff layer is {exits[-1]}. Name"
            " a layer before it"
        )
    return dict.fromkeys(found, ratio)
