"""How the weights of layers in int8 are stored: once for all graphs, as the panels that rankrt's kernels multiply.

A panel has 32 outputs. In it four inputs of an output stand together, as one instruction takes them. Places beyond the
inputs and outputs of a layer are 0. docs/artifact.md specifies it to the byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import Graph
from rankrt_export.precision.int8_numbers import Int8Array
from rankrt_export.precision.recipes import TokenRecipe

LAYERS_DATA = "layers.int8.data"
# The outputs of a panel, and the inputs that stand together.
_PANEL, _QUAD = 32, 4


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
    n_panels, n_quads = _n_panels(recipe.n_out), _n_quads(recipe.n_in)
    shape, n_columns = (n_panels, n_quads, _PANEL, _QUAD), n_panels * _PANEL
    scales = np.pad(recipe.scales, (0, n_columns - recipe.n_out))
    panels = Panels(
        weights=graph.external(LAYERS_DATA, f"{weight}.int8", np.int8, shape, lambda: panels_of(recipe.integers)),
        scales=graph.external(LAYERS_DATA, f"{weight}.int8.scales", np.float32, (n_columns,), lambda: [scales]),
    )
    sums = np.pad(recipe.integers.sum(axis=1, dtype=np.int32), (0, n_columns - recipe.n_out))
    graph.data.tensor(LAYERS_DATA, _sums_of(weight), sums.dtype, sums.shape, lambda: [sums])
    return panels


def stored_sums(graph: Graph, weight: str, recipe: TokenRecipe) -> ir.Value:
    """Return the sum of each output's weights, (n_panels * 32,) int32, which takes a zero point out of a product.

    `stored_panels` has written them.
    """
    n_columns = _n_panels(recipe.n_out) * _PANEL
    return graph.external(LAYERS_DATA, _sums_of(weight), np.int32, (n_columns,), list)


def panels_of(integers: Int8Array) -> Iterator[Int8Array]:
    """Yield the panels of weights, (n_out, n_in), as (n_quads, 32, 4) each, so that no more than one is a copy."""
    n_out, n_in = integers.shape
    for start in range(0, n_out, _PANEL):
        of_panel = integers[start : start + _PANEL]
        filled = np.pad(of_panel, ((0, _PANEL - len(of_panel)), (0, -n_in % _QUAD)))
        yield filled.reshape(_PANEL, -1, _QUAD).transpose(1, 0, 2)


def rows_of(graph: Graph, panels: Panels, *, n_in: int, n_out: int) -> tuple[ir.Value, ir.Value]:
    """Return the weights of panels as (n_in, n_out), and their scales as (n_out,), by operators of constants."""
    zero, one, stop = graph.ints(0), graph.ints(1), graph.ints(n_out)
    by_input = graph.op("Transpose", panels.weights, perm=[1, 3, 0, 2])
    rows = graph.op("Reshape", by_input, graph.ints(_n_quads(n_in) * _QUAD, _n_panels(n_out) * _PANEL))
    if n_in % _QUAD:
        rows = graph.op("Slice", rows, zero, graph.ints(n_in), zero)
    if not n_out % _PANEL:
        return rows, panels.scales
    return graph.op("Slice", rows, zero, stop, one), graph.op("Slice", panels.scales, zero, stop, zero)


def _sums_of(weight: str) -> str:
    return f"{weight}.int8.sums"


def _n_panels(n_out: int) -> int:
    return -(-n_out // _PANEL)


def _n_quads(n_in: int) -> int:
    return -(-n_in // _QUAD)
