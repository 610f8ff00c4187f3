"""Attention and positions over a matrix of rows in plain operators, in the shape that TensorRT recognises.

This is a product, a softmax and a product, with the scale in the query (its guide, "Fused Attention"). The mask is
added, with 0 where nothing is hidden. Softmax is always fp32.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import FLOAT, HALF, Graph, RotaryTables

# Hides a place: exp() of it is 0, and it stays finite with any score added.
HIDDEN = np.float32(-1e30)
_TYPE_OF = {FLOAT: np.float32, HALF: np.float16}


def places(graph: Graph, ids: ir.Value) -> ir.Value:
    """Return the places of a row, 0 to longest - 1, in int32; `ids` are (n_rows, longest)."""
    zero, one = (graph.constant(f"int32({i})", np.array(i, np.int32)) for i in (0, 1))
    longest = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2), graph.ints(0))
    return graph.op("Range", zero, graph.op("Cast", longest, to=ir.DataType.INT32), one)


def counted(graph: Graph, ids: ir.Value) -> ir.Value:
    """Return the places of each row, (n_rows, longest), in int32, without an operator that computes a shape."""
    zero, one = (graph.scalar(np.float32(i)) for i in (0, 1))
    ones = graph.op("Add", graph.op("Mul", graph.op("Cast", ids, to=FLOAT), zero), one)
    up_to = graph.op("CumSum", ones, graph.int_scalar(1), exclusive=1)
    return graph.op("Cast", up_to, to=ir.DataType.INT32)


def mask(graph: Graph, is_seen: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Return the mask to add to scores, 0 where they are seen, with further axes of one place each."""
    added = graph.op("Where", is_seen, graph.scalar(np.float32(0)), graph.scalar(HIDDEN))
    return graph.op("Unsqueeze", added, graph.ints(*axes))


def is_near(graph: Graph, places: ir.Value, reach: int) -> ir.Value:
    """Tell of each two places, (width, width), whether they are at most `reach` apart."""
    own = graph.op("Unsqueeze", places, graph.ints(1))
    step = graph.constant(f"int32({reach + 1})", np.array(reach + 1, np.int32))
    is_before = graph.op("Less", places, graph.op("Add", own, step))
    return graph.op("And", is_before, graph.op("Less", own, graph.op("Add", places, step)))


def attention(
    graph: Graph,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    mask: ir.Value,
    size: int,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> ir.Value:
    """Return the output of attention, (n_rows, n_queries, n_heads * size), from states of as many heads.

    Scores are multiplied with `scale`, by default the inverse root of a head's size. A `cap` bounds them after that.
    """
    scale = size**-0.5 if scale is None else scale
    factor = graph.constant(f"scale({scale!r})", np.array(scale, _TYPE_OF[graph.states]))
    queries = by_head(graph, graph.op("Mul", query, factor), size)
    scores = graph.as_float32(graph.op("MatMul", queries, by_head(graph, key, size, perm=(0, 2, 3, 1))))
    if cap is not None:
        scores = graph.bounded(scores, cap)
    shares = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
    attended = graph.op("MatMul", graph.as_states(shares), by_head(graph, value, size))
    return graph.op("Reshape", graph.op("Transpose", attended, perm=[0, 2, 1, 3]), graph.ints(0, 0, -1))


def rotated(graph: Graph, x: ir.Value, tables: RotaryTables, places: ir.Value, *, n_heads: int) -> ir.Value:
    """Turn the features of each head, (n_rows, n_tokens, n_heads * size), by the token's place, in float32."""
    half = tables.cosines.shape[1]
    cosine, sine = (
        graph.op("Unsqueeze", graph.op("Gather", table, places), graph.ints(-2)) for table in tables.stored(graph)
    )
    heads = graph.op("Reshape", graph.as_float32(x), graph.ints(0, 0, n_heads, 2 * half))
    first, second = (
        graph.op("Slice", heads, graph.ints(start), graph.ints(start + half), graph.ints(-1)) for start in (0, half)
    )
    turned = graph.op(
        "Concat",
        graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)),
        graph.op("Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine)),
        axis=-1,
    )
    return graph.as_states(graph.op("Reshape", turned, graph.ints(0, 0, n_heads * 2 * half)))


def by_head(graph: Graph, x: ir.Value, size: int, *, perm: Sequence[int] = (0, 2, 1, 3)) -> ir.Value:
    """Return states as (n_rows, n_tokens, n_heads, size), transposed; by default heads come before tokens."""
    return graph.op("Transpose", graph.op("Reshape", x, graph.ints(0, 0, -1, size)), perm=perm)
