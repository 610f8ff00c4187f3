"""How much of a causal model is computed for a row: up to which layer, and whether its prefix anew.

Knows the exits of a variant; no text, no engine.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rankrt.artifact.manifest import Variant, Verification
from rankrt.artifact.precisions import TARGETS
from rankrt.errors import InputError
from rankrt.llm.prefixes import Prefixes, own_prefixes, shared_prefixes
from rankrt.options import check_flag, check_whole, is_whole
from rankrt.text.pairs import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """cutoff_layer: where the score is read, None for the last exit; share_prefix: what rows begin with, only once."""

    cutoff_layer: int | None = None
    share_prefix: bool = True

    def __post_init__(self) -> None:
        """Refuse what no model could have."""
        check_whole("cutoff_layer", self.cutoff_layer, least=1, none_is="the last")
        check_flag("share_prefix", self.share_prefix)

    def checked(self, variant: Variant) -> "Depth":
        """Return the same. Raises InputError if the variant has no such exit."""
        if self.cutoff_layer is not None:
            checked_exits([self.cutoff_layer], variant)
        return self

    def exit(self, variant: Variant) -> int:
        """Return the layer behind which the score is read."""
        return variant.exits[-1].layer if self.cutoff_layer is None else self.cutoff_layer

    def verification(self, variant: Variant) -> Verification | None:
        """Return how the scores that are read compare with PyTorch's."""
        found = {end.layer: end.verification for end in variant.exits}
        return variant.verification if self.cutoff_layer is None else found[self.cutoff_layer]

    def prefixes(self, encoded: Encoded) -> Prefixes:
        """Return the beginnings that rows share."""
        return shared_prefixes(encoded) if self.share_prefix else own_prefixes(encoded)


def checked_exits(layers: Iterable[int], variant: Variant) -> list[int]:
    """Return layers in ascending order, without duplicates. Raises InputError for one that is no exit, or for none."""
    given = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str | bytes) else None
    if given is None or not all(map(is_whole, given)):
        raise InputError(f"cutoff_layers={layers!r:.80}, expected a list of whole numbers")
    asked, exits = sorted(set(given)), [end.layer for end in variant.exits]
    if not exits:
        raise InputError(f"cutoff layers are for layerwise models; {variant.name} has one score, at its end")
    if not asked:
        raise InputError("cutoff_layers is empty: there is no layer to read a score behind")
    if wrong := [layer for layer in asked if layer not in exits]:
        on_gpu = "" if TARGETS[variant.target].has_exits else ", the last of which is where its graph for a GPU ends"
        raise InputError(
            f"cutoff layer {_listed(wrong)}: {variant.name} was exported with {_listed(exits)}; use one of these, or"
            f" export the model with --cutoff-layers{on_gpu}"
        )
    return asked


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
