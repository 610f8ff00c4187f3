"""What a user may ask of an export, and the variants that this names. Reads no checkpoint."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

from rankrt.artifact.precisions import PRECISIONS, Precision, Target, VariantKey, variant_keys
from rankrt_export.decoders.prompt_files import PromptFile
from rankrt_export.errors import OptionsError
from rankrt_export.text.texts import Texts

# Opens a progress bar for a step: its title, its total and its unit; the bar is told what was done.
Bar: TypeAlias = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def no_bar(title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda n_done: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to export, and how to check it.

    precisions, targets  each target gets those of the precisions that it has
    texts         what to verify on besides the sample that comes with rankrt
    calibration   what int8 and fp8 are calibrated on; by default the sample
    is_verified   False writes variants that only an explicit precision will load
    max_difference, min_tau   limits in place of the precisions' own; fp32's are fixed
    cutoff_layers  after which layers a layerwise model's scores can be read; by default every fourth that has a head
    compress_layers, compress_ratio  after which layers of a lightweight model how many tokens of a passage become one
    label          which of the two labels of a classifier says that a passage answers the query
    prompt         how a decoder is asked, a name of `styles.STYLES` or a file; by default as its files or its name say
    """

    precisions: Sequence[Precision] = ("fp32",)
    targets: Sequence[Target] = ("cpu",)
    texts: Texts | None = None
    calibration: Texts | None = None
    is_verified: bool = True
    max_difference: float | None = None
    min_tau: float | None = None
    cutoff_layers: Sequence[int] | None = None
    compress_layers: Sequence[int] | None = None
    compress_ratio: int | None = None
    label: str | None = None
    prompt: str | PromptFile | None = None


def asked_variants(targets: Sequence[Target], precisions: Sequence[Precision]) -> list[VariantKey]:
    """Return the variants of each target in those of the precisions that it has, in the order of the two.

    Raises OptionsError if a target has none of them, or if a precision is for none of the targets.
    """
    for target in targets:
        if not any(target in PRECISIONS[precision].targets for precision in precisions):
            raise OptionsError(f"{target} has no {' or '.join(precisions)}; it has {precisions_of(target)}")
    for precision in precisions:
        if not set(PRECISIONS[precision].targets).intersection(targets):
            has = "; ".join(f"{target} has {precisions_of(target)}" for target in targets)
            raise OptionsError(f"{precision} is for none of the targets asked for: {has}")
    return [
        key
        for target in targets
        for precision in precisions
        if target in PRECISIONS[precision].targets
        for key in variant_keys(target, precision)
    ]


def precisions_of(target: Target) -> str:
    """Return the names of the precisions that a target has, the most faithful first."""
    return ", ".join(precision for precision, row in PRECISIONS.items() if target in row.targets)
