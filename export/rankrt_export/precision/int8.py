"""Linear layers in int8: each token's activations are rounded by a scale of their own, weights by one per output.

Stock operators only. `Abs -> ReduceMax` finds a token's scale. A blocked QuantizeLinear whose block is the whole row
rounds it, since the per-axis one is a serial loop in ONNX Runtime. MatMulIntegerToFloat multiplies and applies the
weights' scales, and an ordinary Mul applies the token's. MatMulIntegerToFloat may not be given the token's scale: it
would add a bias before it multiplies. Layers that read the same activations share one rounding of them.

The weights are stored once, in 8 bits. The graph for AVX2 derives its 7 bits from them by operators of constants. ONNX
Runtime folds these when it loads the graph; of com.microsoft's, such as QLinearAdd, it folds none. Each of the seven
keeps its bytes until all are folded. So loading 568 M parameters peaks at 2.4 GB instead of 0.5, and takes 2.6 s of one
core instead of 1.4. A prepared model is loaded without that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import FLOAT, MICROSOFT, Graph
from rankrt_export.precision.float16_storage import Float16Storage
from rankrt_export.precision.float32 import Float32
from rankrt_export.precision.int8_numbers import LARGEST_ACTIVATION, TINIEST_SCALE, Grid
from rankrt_export.precision.methods import CalibratedMethod
from rankrt_export.precision.recipes import Recipe, TableRecipe, TokenRecipe, group_recipes

LAYERS_DATA = "layers.int8.data"
# Tables whose columns are divided before their rows are rounded, and tables whose rows are rounded as they are. Their
# bytes differ, so they have files of their own: in one, w8 read int8's table and drifted by 12 instead of 2.4.
DIVIDED_DATA, ROWS_DATA = "embeddings.int8.data", "embeddings.rows.data"
# A bit for each weight: which half the graph for AVX2 takes.
HALVES_DATA = "halves.int8.data"
# Layers that stay in fp32 have a file of their own, so that the int8 variant can be copied without the fp32 one.
_KEPT = Float32(matrices="kept.fp32.data")
_HALF = Float16Storage()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounded:
    """Activations as bytes, (n_tokens, n_features), and each token's scale, (n_tokens, 1)."""

    values: ir.Value
    scales: ir.Value


class Int8:
    """8-bit integers, as a recipe says."""

    states = FLOAT

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._rounded: dict[ir.Value, _Rounded] = {}

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        recipe = self._recipe.layers.get(weight.removesuffix(".weight"))
        if recipe is None:
            return _KEPT.linear(graph, x, weight, bias)
        if x not in self._rounded:
            self._rounded[x] = round_tokens(graph, x, recipe, name=weight)
        stored, scales = integers(graph, weight, recipe)
        if self._recipe.key.instruction_set == "avx2":
            stored, scales = halves(graph, stored, scales, weight, recipe)
        product = multiply(graph, self._rounded[x], stored, scales, recipe.grid)
        return product if bias is None else graph.op("Add", product, bias)

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


def round_tokens(graph: Graph, x: ir.Value, recipe: TokenRecipe, *, name: str) -> _Rounded:
    """Round activations token by token; `name` is the first layer's that reads them."""
    if recipe.divisors is not None:
        x = graph.op("Mul", x, graph.array(f"{name}.int8.factors", np.float32(1) / recipe.divisors))
    scales = token_scales(graph, x, recipe.grid)
    zero_points = graph.op("Expand", _zero_point(graph, recipe.grid), graph.op("Shape", scales))
    n_features = graph.weights.shape(name)[1]
    values = graph.op("QuantizeLinear", x, scales, zero_points, axis=1, block_size=n_features)
    return _Rounded(values=values, scales=scales)


def token_scales(graph: Graph, x: ir.Value, grid: Grid) -> ir.Value:
    """Return the scale of each token, (n_tokens, 1): what the largest activation has to fit in."""
    n_steps = LARGEST_ACTIVATION - grid.zero_point
    floor = TINIEST_SCALE if grid.minimum is None else np.float32(-grid.minimum / grid.zero_point)
    largest = graph.op("ReduceMax", graph.op("Abs", x) if grid.minimum is None else x, graph.ints(1), keepdims=1)
    steps = graph.op("Div", largest, graph.scalar(np.float32(n_steps)))
    return graph.op("Max", steps, graph.scalar(floor))


def integers(graph: Graph, weight: str, recipe: TokenRecipe) -> tuple[ir.Value, ir.Value]:
    """Return a layer's weights in 8 bits, (n_in, n_out), and their scales, (n_out,)."""
    n_out, n_in = graph.weights.shape(weight)

    def blocks() -> Iterator[np.ndarray]:
        yield recipe.integers.T

    stored = graph.external(LAYERS_DATA, f"{weight}.int8", np.int8, (n_in, n_out), blocks)
    return stored, graph.external(LAYERS_DATA, f"{weight}.int8.scales", np.float32, (n_out,), lambda: [recipe.scales])


def halves(
    graph: Graph, stored: ir.Value, scales: ir.Value, weight: str, recipe: TokenRecipe
) -> tuple[ir.Value, ir.Value]:
    """Return a layer's weights in 7 bits, the lower half of each and its bit, and their scales."""
    n_out, n_in = graph.weights.shape(weight)
    n_bytes = -(-n_out // 8)

    def blocks() -> Iterator[np.ndarray]:
        yield np.packbits(recipe.is_upper.T, axis=1, bitorder="little")[..., None]

    packed = graph.external(HALVES_DATA, f"{weight}.int8.halves", np.uint8, (n_in, n_bytes, 1), blocks)
    bits = graph.op("BitShift", packed, graph.constant("uint8s(0-7)", np.arange(8, dtype=np.uint8)), direction="RIGHT")
    bits = graph.op("BitwiseAnd", bits, graph.constant("uint8(1)", np.array(1, np.uint8)))
    bits = graph.op("Reshape", graph.op("Cast", bits, to=ir.DataType.INT8), graph.ints(n_in, 8 * n_bytes))
    if n_out % 8:
        bits = graph.op("Slice", bits, graph.ints(0), graph.ints(n_out), graph.ints(1))
    # Div cuts off towards zero; of an even number nothing is cut off.
    two, all_but_lowest = (graph.constant(f"int8({value})", np.array(value, np.int8)) for value in (2, -2))
    lower = graph.op("Div", graph.op("BitwiseAnd", stored, all_but_lowest), two)
    return graph.op("Add", lower, bits), graph.op("Mul", scales, graph.scalar(np.float32(2)))


def multiply(graph: Graph, x: _Rounded, weights: ir.Value, scales: ir.Value, grid: Grid) -> ir.Value:
    """Return the product with a layer's weights, (n_in, n_out), back in float32."""
    one, zero_point = graph.scalar(np.float32(1)), _zero_point(graph, grid)
    product = graph.op("MatMulIntegerToFloat", x.values, weights, one, scales, zero_point, domain=MICROSOFT)
    return graph.op("Mul", product, x.scales)


def _zero_point(graph: Graph, grid: Grid) -> ir.Value:
    return graph.constant(f"uint8({grid.zero_point})", np.array(grid.zero_point, np.uint8))


METHODS = (
    CalibratedMethod(target="cpu", precision="int8", arithmetic=Int8, layer_recipes=group_recipes, has_tables=True),
)
