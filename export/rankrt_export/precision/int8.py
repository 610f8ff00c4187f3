"""int8 on a CPU: the layers and tables that a recipe names, in 8 bits.

How a layer is rounded and multiplied depends on whose operators the graph has: see `int8_stock` and `int8_kernels`.
Layers that read the same activations share one rounding of them.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import FLOAT, Arithmetic, Graph
from rankrt_export.precision import int8_kernels, int8_stock
from rankrt_export.precision.float16_storage import Float16Storage
from rankrt_export.precision.float32 import Float32, Float32Kernels
from rankrt_export.precision.int8_panels import Rounded
from rankrt_export.precision.methods import CalibratedMethod
from rankrt_export.precision.recipes import Recipe, TableRecipe, TokenRecipe, group_recipes

# Tables whose columns are divided before their rows are rounded, and tables whose rows are rounded as they are. Their
# bytes differ, so they have files of their own: in one, w8 read int8's table and drifted by 12 instead of 2.4.
DIVIDED_DATA, ROWS_DATA = "embeddings.int8.data", "embeddings.rows.data"
# Layers that stay in fp32 have a file of their own, so that the int8 variant can be copied without the fp32 one.
_KEPT, _KEPT_FOR_KERNELS = Float32(matrices="kept.fp32.data"), Float32Kernels(matrices="kept.fp32.data")
_HALF = Float16Storage()


class _Operators(Protocol):
    """The two steps of a layer: a file that has them."""

    def round_tokens(self, graph: Graph, x: ir.Value, recipe: TokenRecipe, *, name: str) -> Rounded: ...

    def linear(self, graph: Graph, x: Rounded, weight: str, bias: ir.Value | None, recipe: TokenRecipe) -> ir.Value: ...


class Int8:
    """8-bit integers, as a recipe says."""

    states = FLOAT

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        needs_kernels = recipe.key.needs_kernels
        self._operators: _Operators = int8_kernels if needs_kernels else int8_stock
        self._kept: Arithmetic = _KEPT_FOR_KERNELS if needs_kernels else _KEPT
        self._rounded: dict[ir.Value, Rounded] = {}

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        recipe = self._recipe.layers.get(weight.removesuffix(".weight"))
        if recipe is None:
            return self._kept.linear(graph, x, weight, bias)
        if x not in self._rounded:
            self._rounded[x] = self._operators.round_tokens(graph, x, recipe, name=weight)
        return self._operators.linear(graph, self._rounded[x], weight, bias, recipe)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, each rounded to 8 bits by its own scale, or to half precision."""
        recipe = self._recipe.tables.get(table.removesuffix(".weight"))
        if recipe is None:
            return _HALF.lookup(graph, ids, table)
        return look_up_rows(graph, ids, table, recipe)


def look_up_rows(graph: Graph, ids: ir.Value, table: str, recipe: TableRecipe) -> ir.Value:
    """Return rows of a table that is stored in 8 bits."""
    n_rows, n_features = graph.weights.shape(table)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return recipe.blocks(graph.weights.blocks(table))

    key, file = f"{table}.int8", ROWS_DATA if recipe.factors is None else DIVIDED_DATA
    integers = graph.external(file, key, np.int8, (n_rows, n_features), lambda: (integers for integers, _ in blocks()))
    scales = graph.external(file, f"{key}.scales", np.float32, (n_rows, 1), lambda: (scales for _, scales in blocks()))
    rows = graph.op("Cast", graph.op("Gather", integers, ids), to=ir.DataType.FLOAT)
    rows = graph.op("Mul", rows, graph.op("Gather", scales, ids))
    return rows if recipe.factors is None else graph.op("Mul", rows, graph.array(f"{key}.factors", recipe.factors))


METHODS = (
    CalibratedMethod(target="cpu", precision="int8", arithmetic=Int8, layer_recipes=group_recipes, has_tables=True),
)
