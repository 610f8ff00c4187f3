"""Rows of a causal model as a matrix, padded after their ends: the common part of the targets for GPUs.

A token sees only the tokens before it. So a row's tokens never see the padding, and no mask has to hide it. Rows share
no prefix here, because its keys and values would have to be copied for each row.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir

from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph
from rankrt_export.targets import plain
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
        self._masks: dict[int | None, ir.Value] = {}

    @cached_property
    def places(self) -> ir.Value:
        """The places of tokens in their rows, in int32: (longest,), or (n_rows, longest)."""
        return plain.places(self.graph, self.states)

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

    def plain_attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value, *, n_heads: int
    ) -> ir.Value:
        """Attend in plain operators. Any mask and any bound can be written so."""
        key, value, shape = self.for_each_head(key, n_heads), self.for_each_head(value, n_heads), self.shape
        return plain.attention(self.graph, query, key, value, mask, shape.head_size, scale=shape.scale, cap=shape.cap)

    def causal_mask(self, window: int | None) -> ir.Value:
        """Return what hides from each token those after it, and those before its window."""
        if window not in self._masks:
            graph = self.graph
            query, key = (graph.op("Unsqueeze", self.places, graph.ints(axis)) for axis in (-1, -2))
            is_seen = graph.op("LessOrEqual", key, query)
            if window is not None:
                is_seen = graph.op("And", is_seen, graph.op("Less", query, graph.op("Add", key, self.int32(window))))
            self._masks[window] = plain.mask(graph, is_seen, axes=(-3,))
        return self._masks[window]

    def int32(self, value: int) -> ir.Value:
        """Return a constant int32 scalar, as places and lengths are."""
        return self.graph.constant(f"int32({value})", np.array(value, np.int32))

    def for_each_head(self, x: ir.Value, n_heads: int) -> ir.Value:
        """Return keys or values, (n_rows, n, n_kv_heads * size), repeated for each head of queries."""
        graph, n_kv_heads, size = self.graph, self.shape.n_kv_heads, self.shape.head_size
        if n_kv_heads == n_heads:
            return x
        apart = graph.op("Reshape", x, graph.ints(0, 0, n_kv_heads, 1, size))
        each = graph.op("Tile", apart, graph.ints(1, 1, 1, n_heads // n_kv_heads, 1))
        return graph.op("Reshape", each, graph.ints(0, 0, n_heads * size))
