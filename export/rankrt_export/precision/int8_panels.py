"""The weights of layers in int8 as panels, with their scales and their sums. In a panel four inputs stand together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import Graph
from rankrt_export.precision.int8_numbers import Int8Array
from rankrt_export.precision.panels import PANEL, n_panels, panels_of, without_filling
from rankrt_export.precision.recipes import TokenRecipe

LAYERS_DATA = "layers.int8.data"
# The inputs that stand together.
_QUAD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """Activations as bytes, (n_tokens, n_in or more), and n_tokens scales."""

    values: ir.Value
    scales: ir.Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """The weights of a layer.

    weights  (n_panels, n_quads, 32, 4) int8; that of input 4 q + i and output 32 p + c is at [p, q, c, i]
    scales   (n_panels * 32,) float32, of each output's weights
    """

    weights: ir.Value
    scales: ir.Value


def stored_panels(graph: Graph, weight: str, recipe: TokenRecipe) -> Panels:
    """Return the panels of a layer's weights in their data file, which gets their sums as well.

    A stock graph has no use for sums, but so the file is the same whichever variants are written.
    """
    n_columns = n_panels(recipe.n_out) * PANEL
    shape = (n_panels(recipe.n_out), _n_quads(recipe.n_in), PANEL, _QUAD)
    scales = np.pad(recipe.scales, (0, n_columns - recipe.n_out))
    panels = Panels(
        weights=graph.external(LAYERS_DATA, f"{weight}.int8", np.int8, shape, lambda: quads_of(recipe.integers)),
        scales=graph.external(LAYERS_DATA, f"{weight}.int8.scales", np.float32, (n_columns,), lambda: [scales]),
    )
    sums = np.pad(recipe.integers.sum(axis=1, dtype=np.int32), (0, n_columns - recipe.n_out))
    graph.data.tensor(LAYERS_DATA, _sums_of(weight), sums.dtype, sums.shape, lambda: [sums])
    return panels


def stored_sums(graph: Graph, weight: str, recipe: TokenRecipe) -> ir.Value:
    """Return the sum of each output's weights, (n_panels * 32,) int32, which takes a zero point out of a product.

    `stored_panels` has written them.
    """
    return graph.external(LAYERS_DATA, _sums_of(weight), np.int32, (n_panels(recipe.n_out) * PANEL,), list)


def quads_of(integers: Int8Array) -> Iterator[Int8Array]:
    """Yield the panels of weights, (n_out, n_in), as (n_quads, 32, 4) each, so that no more than one is a copy."""
    for panel in panels_of([integers]):
        filled = np.pad(panel, ((0, 0), (0, -panel.shape[1] % _QUAD)))
        yield filled.reshape(PANEL, -1, _QUAD).transpose(1, 0, 2)


def rows_of(graph: Graph, panels: Panels, *, n_in: int, n_out: int) -> tuple[ir.Value, ir.Value]:
    """Return the weights of panels as (n_in, n_out), and their scales as (n_out,), by operators of constants."""
    n_rows, n_columns = _n_quads(n_in) * _QUAD, n_panels(n_out) * PANEL
    rows = graph.op("Transpose", panels.weights, perm=[1, 3, 0, 2])
    rows = graph.op("Reshape", rows, graph.ints(n_rows, n_columns))
    rows = without_filling(graph, rows, axis=0, n=n_in, n_filled=n_rows)
    rows = without_filling(graph, rows, axis=1, n=n_out, n_filled=n_columns)
    return rows, without_filling(graph, panels.scales, axis=0, n=n_out, n_filled=n_columns)


def _sums_of(weight: str) -> str:
    return f"{weight}.int8.sums"


def _n_quads(n_in: int) -> int:
    return -(-n_in // _QUAD)
