"""Which variants are written next: all that were asked for, then without what failed, or with less of it in 8 bits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from rankrt.artifact.precisions import VariantKey
from rankrt_export.calibrate.calibration import Calibration
from rankrt_export.errors import VariantError, VerificationError
from rankrt_export.precision.recipes import Recipe

# Predicted drift is right to the first order only, so a second try aims lower than the limit.
_AIM = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The variants to write.

    recipes   of each, in their order; None for one that is not calibrated
    left_out  why variants that were asked for are not written
    """

    recipes: Mapping[VariantKey, Recipe | None]
    left_out: tuple[VariantError, ...] = ()

    @classmethod
    def of(
        cls,
        variants: Iterable[VariantKey],
        calibrations: Mapping[VariantKey, Calibration] | None = None,
        failures: Sequence[VariantError] = (),
    ) -> Self:
        """Return the plan of all variants but those that could not be calibrated."""
        recipes = {key: found.recipe(found.n_kept) for key, found in (calibrations or {}).items()}
        failed = {error.variant for error in failures}
        return cls(recipes={key: recipes.get(key) for key in variants if key not in failed}, left_out=tuple(failures))

    def after(self, error: VariantError, calibrations: Mapping[VariantKey, Calibration]) -> "Plan":
        """Return the plan that keeps more layers of the variant that failed as they are, or else leaves it out.

        Raises VerificationError if it is fp32 by ONNX Runtime: then the graph is wrong.
        """
        key, recipe = error.variant, self.recipes.get(error.variant)
        if recipe is not None and (tighter := calibrations[key].tighten(recipe, _AIM / error.excess)) is not None:
            return replace(self, recipes={**self.recipes, key: tighter})
        if key.row.is_exact and not key.needs_kernels:
            raise VerificationError(f"{error}; nothing was written, as {key.precision} has to be exact") from error
        others = {other: recipe for other, recipe in self.recipes.items() if other != key}
        return Plan(recipes=others, left_out=(*self.left_out, error))

    @property
    def missing(self) -> tuple[VariantError, ...]:
        """Why there is no variant in a precision that was asked for; the others have one for other processors."""
        written = {(key.target, key.precision) for key in self.recipes}
        return tuple(e for e in self.left_out if (e.variant.target, e.variant.precision) not in written)

    @property
    def reasons(self) -> str:
        """Why precisions are missing, in words."""
        return "; ".join(dict.fromkeys(map(str, self.missing)))

    @property
    def advice(self) -> str:
        """How a precision that is missing could be had."""
        if all(math.isinf(error.excess) for error in self.missing):
            return "Choose other precisions with --precision"
        others = "Allow more with --max-drift and --min-tau, or choose other precisions with --precision"
        if not any(error.variant.row.is_calibrated for error in self.missing):
            return others
        return f"{others}. Which layers are rounded depends on --calibration: give text like that of your users"
