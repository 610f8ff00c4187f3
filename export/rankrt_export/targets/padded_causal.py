"""Rows of a causal model as a matrix, padded after their ends: the common part of the targets for GPUs.

A token sees only the tokens before it. So a row's tokens never see the padding, and no mask has to hide it. Rows share
no prefix here, because its keys and values would have to be copied for each row.
"""

from collections.abc import Mapping

import onnx_ir as ir

from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph
from rankrt_export.targets.segment import SegmentShape


class PaddedCausalOperators:
    """Inputs input_ids (n_rows, longest) and lengths (n_rows,), both int32; the whole model is one segment."""

    layout: Layout = "padded"
    n_axes = 2

    def __init__(self, graph: Graph, shape: SegmentShape) -> None:
        self.graph = graph
        self.shape = shape
        self.states = graph.input("input_ids", ir.DataType.INT32, ["n_rows", "longest"])
        self.lengths = graph.input("lengths", ir.DataType.INT32, ["n_rows"])
        stops = graph.op("Unsqueeze", graph.op("Cast", self.lengths, to=ir.DataType.INT64), graph.ints(1))
        # (n_rows, 1): the place of each row's last token
        self.last = graph.op("Sub", stops, graph.ints(1))

    def last_layer_outputs(self, x: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, 1, n_features)."""
        found = self.graph.op("GatherND", x, self.last, batch_dims=1)
        return self.graph.op("Unsqueeze", found, self.graph.ints(1))

    def last_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, n_features): it is the row's only output."""
        return self.graph.op("Squeeze", hidden, self.graph.ints(1))

    def outputs(self) -> Mapping[str, ir.Value]:
        """Return no outputs: no run hands anything to another."""
        return {}

    def check_sees_all(self, window: int | None) -> None:
        """Assert that attention is of the kind that is written for GPUs; other models are refused before."""
        shape = self.shape
        assert window is None and shape.cap is None and shape.scale == shape.head_size**-0.5, "written for CPUs only"

    def for_each_head(self, x: ir.Value, n_heads: int) -> ir.Value:
        """Return keys or values, (n_rows, n, n_kv_heads * size), repeated for each head of queries."""
        graph, n_kv_heads, size = self.graph, self.shape.n_kv_heads, self.shape.head_size
        if n_kv_heads == n_heads:
            return x
        apart = graph.op("Reshape", x, graph.ints(0, 0, n_kv_heads, 1, size))
        each = graph.op("Tile", apart, graph.ints(1, 1, 1, n_heads // n_kv_heads, 1))
        return graph.op("Reshape", each, graph.ints(0, 0, n_heads * size))
