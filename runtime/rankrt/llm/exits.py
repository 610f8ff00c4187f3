"""The exits of a layerwise model: the layers where a score can be read, and which of them a caller may ask for.

Knows the exits of a variant; no text, and nothing that runs one.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Variant, Verification
from rankrt.artifact.precisions import TARGETS
from rankrt.errors import InputError
from rankrt.options import check_whole, is_whole

# Called after each exit with its number, the rows that came there and their logits, (n_rows,). Returns the rows that
# run to the next exit.
Keep: TypeAlias = Callable[[int, Int64Array, Float32Array], Int64Array]


def check_cutoff(layer: int | None, variant: Variant) -> None:
    """Raise InputError unless a score can be read after that layer. None is the last exit, which every variant has."""
    check_whole("cutoff_layer", layer, least=1, none_is="the last")
    if layer is not None:
        checked_exits([layer], variant)


def verification_at(cutoff_layer: int | None, variant: Variant) -> Verification | None:
    """Return how the scores after a layer compare with PyTorch's. None is the last exit."""
    if cutoff_layer is None:
        return variant.verification
    return next(end.verification for end in variant.exits if end.layer == cutoff_layer)


def checked_exits(layers: Iterable[int], variant: Variant) -> list[int]:
    """Return layers in ascending order, without duplicates.

    Raises InputError if there are none, or for a layer that is not an exit.
    """
    given = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str | bytes) else None
    if given is None or not all(map(is_whole, given)):
        raise InputError(f"cutoff_layers={layers!r:.80}, expected a list of whole numbers")
    asked, exits = sorted(set(given)), [end.layer for end in variant.exits]
    if not exits:
        raise InputError(f"cutoff layers are for layerwise models; {variant.name} has one score, at its end")
    if not asked:
        raise InputError("cutoff_layers is empty; name at least one layer")
    if wrong := [layer for layer in asked if layer not in exits]:
        on_gpu = "" if TARGETS[variant.target].has_exits else ". A graph for a GPU ends at the last of them"
        wanted, there = (", ".join(map(str, layers)) for layers in (wrong, exits))
        raise InputError(
            f"cutoff layer {wanted}: {variant.name} was exported with {there}; use one of these, or"
            f" export the model with --cutoff-layers{on_gpu}"
        )
    return asked
