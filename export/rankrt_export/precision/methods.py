"""How a precision is written for a target, and where that is found: each file of this folder says it for its own.

A file that writes a precision has `METHODS`, a sequence of `Method`. No other place lists the files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import Precision, Target, VariantKey
from rankrt_export.graph.graph import Arithmetic
from rankrt_export.precision.recipes import LayerGroup, LayerRecipe, Recipe, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A precision for a target.

    bytes_per_weight, bytes_in_memory   in place of the precision's own, where no other target shares the data files
    """

    target: Target
    precision: Precision
    bytes_per_weight: float | None = None
    bytes_in_memory: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedMethod(Method):
    """One that is the same for every model.

    arithmetic  how layers and tables are stored and multiplied
    of_matrix   the same where the rows of a run are a matrix and not one sequence, if that differs
    of_kernels  the same for rankrt's own kernels, if they compute it
    """

    arithmetic: Arithmetic
    of_matrix: Arithmetic | None = None
    of_kernels: Arithmetic | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedMethod(Method):
    """One that text decides about.

    arithmetic     returns how layers and tables are stored and multiplied as a recipe says
    layer_recipes  returns the recipes of layers that read the same activations; weights are (n_out, n_in) each
    has_tables     whether tables of vectors are rounded as well, where the text says that they may be
    """

    arithmetic: Callable[[Recipe], Arithmetic]
    layer_recipes: Callable[[LayerGroup, Sequence[Float32Array], Seen], Sequence[LayerRecipe]]
    has_tables: bool


def method_of(key: VariantKey) -> Method:
    """Return how a variant is written."""
    return _methods()[key.target, key.precision]


def calibrated_method(key: VariantKey) -> CalibratedMethod:
    """Return how a variant is written that is calibrated."""
    found = method_of(key)
    assert isinstance(found, CalibratedMethod), f"{key} is not calibrated"
    return found


def arithmetic_of(key: VariantKey, recipe: Recipe | None, *, is_matrix: bool) -> Arithmetic:
    """Return how a variant's layers and tables are computed; `recipe` is for one that is calibrated.

    `is_matrix` says that a GPU takes the model's rows as a matrix.
    """
    if recipe is not None:
        return calibrated_method(key).arithmetic(recipe)
    found = method_of(key)
    assert isinstance(found, FixedMethod), f"{key} is written by a recipe"
    if key.needs_kernels:
        assert found.of_kernels is not None, f"{key} has no kernels"
        return found.of_kernels
    return found.of_matrix if is_matrix and found.of_matrix is not None else found.arithmetic


@cache
def _methods() -> Mapping[tuple[Target, Precision], Method]:
    names = [path.stem for path in sorted(Path(__file__).parent.glob("[!_]*.py"))]
    modules = [import_module(f"rankrt_export.precision.{name}") for name in names]
    methods: list[Method] = [method for module in modules for method in getattr(module, "METHODS", ())]
    return {(method.target, method.precision): method for method in methods}
