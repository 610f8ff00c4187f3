"""The variants that can be written: which precisions each target has, and how they are computed there."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from rankrt.artifact.manifest import Precision as PrecisionName
from rankrt.artifact.manifest import Target
from rankrt_export.errors import OptionsError
from rankrt_export.graph.graph import Precision
from rankrt_export.precision.float16 import Half
from rankrt_export.precision.float16_storage import Float16
from rankrt_export.precision.float32 import Float32, fused_matmul, matmul
from rankrt_export.precision.int8 import Int8
from rankrt_export.precision.qdq import Explicit
from rankrt_export.precision.recipes import KINDS_FOR_CPUS, Kind, Recipe
from rankrt_export.precision.weight_only import INT4, W8

# fp16 is half the download for a CPU, which computes in fp32; a GPU computes in it.
_FIXED: Mapping[Target, Mapping[PrecisionName, Precision]] = {
    "cpu": {"fp32": Float32(), "fp16": Float16(), "w8": W8, "int4": INT4},
    "cuda": {"fp32": Float32(), "fp16": Half()},
    "tensorrt": {"fp32": Float32(multiply=matmul), "fp16": Half(multiply=matmul)},
}
# The states of a causal model are a matrix of rows there, which Gemm does not take.
_CAUSAL: Mapping[Target, Mapping[PrecisionName, Precision]] = {
    "cuda": {"fp32": Float32(multiply=fused_matmul), "fp16": Half(multiply=fused_matmul)},
}
# Those that follow a recipe, which calibration finds.
_BY_RECIPE: Mapping[Target, Mapping[PrecisionName, Callable[[Recipe], Precision]]] = {
    "cpu": {"int8": Int8},
    "tensorrt": {"int8": Explicit, "fp8": Explicit},
}
_EXPLICIT: tuple[PrecisionName, ...] = ("int8", "fp8")
_KINDS = (*KINDS_FOR_CPUS, *(Kind(target="tensorrt", precision=name) for name in _EXPLICIT))

Name: TypeAlias = tuple[Target, PrecisionName]


def asked_variants(targets: Sequence[Target], precisions: Sequence[PrecisionName]) -> list[Name]:
    """Return each target with those of the precisions that it has, in the order in which they are asked for.

    Raises OptionsError if a target has none of them, or a precision is none of any target's.
    """
    found = [(target, precision) for target in targets for precision in precisions if precision in _names(target)]
    for target in targets:
        if not any(target == of for of, _ in found):
            raise OptionsError(f"{target} has no {_either(precisions)}; it has {', '.join(_names(target))}")
    for precision in precisions:
        if not any(precision == name for _, name in found):
            has = "; ".join(f"{target} has {', '.join(_names(target))}" for target in targets)
            raise OptionsError(f"{precision} is for none of the targets asked for: {has}")
    return found


def precision_of(target: Target, name: PrecisionName, recipe: Recipe | None, *, is_causal: bool) -> Precision:
    """Return how a variant is computed; `recipe` is for those that are written by one."""
    if (kind := _BY_RECIPE.get(target, {}).get(name)) is not None:
        assert recipe is not None, f"{target}-{name} is written by a recipe"
        return kind(recipe)
    fixed = _CAUSAL if is_causal and target in _CAUSAL else _FIXED
    return fixed[target][name]


def is_explicit(name: Name) -> bool:
    """Tell whether a variant is in 8 bits by explicit quantization, with weights of its own."""
    target, precision = name
    return _BY_RECIPE.get(target, {}).get(precision) is Explicit


def kinds_of(variants: Iterable[Name]) -> list[Kind]:
    """Return the kinds of variants among these that are written by a recipe, each of which needs one."""
    return [kind for kind in _KINDS if (kind.target, kind.precision) in variants]


def recipes_of(target: Target, name: PrecisionName, recipes: Mapping[Kind, Recipe]) -> Sequence[Recipe | None]:
    """Return the recipes for a target in a precision, a variant each; of those that need none it is None."""
    if name not in _BY_RECIPE.get(target, {}):
        return [None]
    return [recipe for kind, recipe in recipes.items() if (kind.target, kind.precision) == (target, name)]


def _names(target: Target) -> list[PrecisionName]:
    return [*_FIXED[target], *_BY_RECIPE.get(target, {})]


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
