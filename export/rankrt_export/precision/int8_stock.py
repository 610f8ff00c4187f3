"""Layers in int8 by ONNX Runtime's own operators, for any processor: activations by a scale of each token.

`Abs -> ReduceMax` finds a token's scale. A blocked QuantizeLinear whose block is the whole row rounds it, since the
per-axis one is a serial loop in ONNX Runtime. MatMulIntegerToFloat multiplies and applies the weights' scales, and an
ordinary Mul applies the token's. MatMulIntegerToFloat may not be given the token's scale: it would add a bias before it
multiplies.

The weights are stored once, in 8 bits and as panels. Operators of constants make rows of the panels, and for AVX2 7
bits of the 8. ONNX Runtime folds these when it loads the graph; of com.microsoft's, such as QLinearAdd, it folds none.
Each keeps its bytes until all are folded. So loading 568 M parameters takes 1.7 s of one core and peaks at 0.7 GB,
and for AVX2 5.8 s and 2.9 GB. Rows that were stored as such took 0.4 s and 0.4 GB, and for AVX2 4 s and 2.4 GB. A
prepared model is loaded without that, and the graph for kernels in 0.03 s.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import MICROSOFT, Graph
from rankrt_export.precision.int8_numbers import LARGEST_ACTIVATION, Grid
from rankrt_export.precision.int8_panels import Rounded, rows_of, stored_panels
from rankrt_export.precision.recipes import TokenRecipe

# A bit for each weight: which half the graph for AVX2 takes.
HALVES_DATA = "halves.int8.data"


def round_tokens(graph: Graph, x: ir.Value, recipe: TokenRecipe, *, name: str) -> Rounded:
    """Round activations token by token, (n_tokens, n_features); `name` is the first weight's that multiplies them."""
    if recipe.divisors is not None:
        x = graph.op("Mul", x, graph.array(f"{name}.int8.factors", recipe.factors))
    scales = token_scales(graph, x, recipe.grid)
    zero_points = graph.op("Expand", _zero_point(graph, recipe.grid), graph.op("Shape", scales))
    n_features = graph.weights.shape(name)[1]
    values = graph.op("QuantizeLinear", x, scales, zero_points, axis=1, block_size=n_features)
    return Rounded(values=values, scales=scales)


def linear(graph: Graph, x: Rounded, weight: str, bias: ir.Value | None, recipe: TokenRecipe) -> ir.Value:
    """Return x @ W.T + bias in float32."""
    rows, scales = rows_of(graph, stored_panels(graph, weight, recipe), n_in=recipe.n_in, n_out=recipe.n_out)
    if recipe.instruction_set == "avx2":
        rows, scales = halves(graph, rows, scales, weight, recipe)
    product = multiply(graph, x, rows, scales, recipe.grid)
    return product if bias is None else graph.op("Add", product, bias)


def token_scales(graph: Graph, x: ir.Value, grid: Grid) -> ir.Value:
    """Return the scale of each token, (n_tokens, 1): what the largest activation has to fit in."""
    n_steps = LARGEST_ACTIVATION - grid.zero_point
    largest = graph.op("ReduceMax", graph.op("Abs", x) if grid.minimum is None else x, graph.ints(1), keepdims=1)
    steps = graph.op("Div", largest, graph.scalar(np.float32(n_steps)))
    return graph.op("Max", steps, graph.scalar(grid.least_scale))


def halves(
    graph: Graph, rows: ir.Value, scales: ir.Value, weight: str, recipe: TokenRecipe
) -> tuple[ir.Value, ir.Value]:
    """Return a layer's weights, (n_in, n_out), in 7 bits, the lower half of each and its bit, and their scales."""
    n_bytes = -(-recipe.n_out // 8)

    def blocks() -> Iterator[np.ndarray]:
        yield np.packbits(recipe.is_upper.T, axis=1, bitorder="little")[..., None]

    packed = graph.external(HALVES_DATA, f"{weight}.int8.halves", np.uint8, (recipe.n_in, n_bytes, 1), blocks)
    bits = graph.op("BitShift", packed, graph.constant("uint8s(0-7)", np.arange(8, dtype=np.uint8)), direction="RIGHT")
    bits = graph.op("BitwiseAnd", bits, graph.constant("uint8(1)", np.array(1, np.uint8)))
    bits = graph.op("Reshape", graph.op("Cast", bits, to=ir.DataType.INT8), graph.ints(recipe.n_in, 8 * n_bytes))
    if recipe.n_out % 8:
        bits = graph.op("Slice", bits, graph.ints(0), graph.ints(recipe.n_out), graph.ints(1))
    # Div cuts off towards zero; of an even number nothing is cut off.
    two, all_but_lowest = (graph.constant(f"int8({value})", np.array(value, np.int8)) for value in (2, -2))
    lower = graph.op("Div", graph.op("BitwiseAnd", rows, all_but_lowest), two)
    return graph.op("Add", lower, bits), graph.op("Mul", scales, graph.scalar(np.float32(2)))


def multiply(graph: Graph, x: Rounded, rows: ir.Value, scales: ir.Value, grid: Grid) -> ir.Value:
    """Return the product with a layer's weights, (n_in, n_out), back in float32."""
    one, zero_point = graph.scalar(np.float32(1)), _zero_point(graph, grid)
    product = graph.op("MatMulIntegerToFloat", x.values, rows, one, scales, zero_point, domain=MICROSOFT)
    return graph.op("Mul", product, x.scales)


def _zero_point(graph: Graph, grid: Grid) -> ir.Value:
    return graph.constant(f"uint8({grid.zero_point})", np.array(grid.zero_point, np.uint8))
