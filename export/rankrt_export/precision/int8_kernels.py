"""Layers in int8 by rankrt's own operators: RoundTokens and Linear, which docs/artifact.md specifies.

RoundTokens multiplies by factors, finds each token's scale and rounds, in one pass over what the cache holds. Linear
reads the panels as they are stored, adds the bias, and applies a GELU that follows: see `Graph.gelu`.
"""

import onnx_ir as ir

from rankrt_export.graph.graph import RANKRT, Graph
from rankrt_export.precision.int8_panels import Rounded, stored_panels, stored_sums
from rankrt_export.precision.recipes import TokenRecipe


def round_tokens(graph: Graph, x: ir.Value, recipe: TokenRecipe, *, name: str) -> Rounded:
    """Round activations token by token; `name` is the first weight's that multiplies them."""
    factors = () if recipe.divisors is None else (graph.array(f"{name}.int8.factors", recipe.factors),)
    grid = {"zero_point": recipe.grid.zero_point, "floor": float(recipe.grid.least_scale)}
    values, scales = graph.ops("RoundTokens", x, *factors, n_outputs=2, domain=RANKRT, **grid)
    return Rounded(values=values, scales=scales)


def linear(graph: Graph, x: Rounded, weight: str, bias: ir.Value | None, recipe: TokenRecipe) -> ir.Value:
    """Return x @ W.T + bias in float32."""
    panels = stored_panels(graph, weight, recipe)
    inputs = [x.values, x.scales, panels.weights, panels.scales, stored_sums(graph, weight, recipe)]
    inputs += [] if bias is None else [bias]
    numbers = {"n_outputs": recipe.n_out, "zero_point": recipe.grid.zero_point, "gelu": 0}
    return graph.op("Linear", *inputs, domain=RANKRT, **numbers)
