"""Rows of a causal model as a matrix, filled up behind their ends: what the targets for GPUs share.

A token sees only what stands before it, so none of a row's own ever sees what its row is filled up with, and no mask
hides that. Rows have no prefix in common here: keys and values that several rows read would have to be copied for each.
"""

from dataclasses import dataclass

import onnx_ir as ir

from rankrt_export.graph import Graph


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Inputs input_ids (n_rows, longest) and lengths (n_rows,), both int32, and the operators that read them."""

    graph: Graph
    ids: ir.Value
    lengths: ir.Value
    last: ir.Value

    @classmethod
    def inputs(cls, graph: Graph) -> "PaddedRows":
        """Declare the inputs of a graph; `last`, (n_rows, 1), int64, is the place of each row's last token."""
        ids = graph.input("input_ids", ir.DataType.INT32, ["n_rows", "longest"])
        lengths = graph.input("lengths", ir.DataType.INT32, ["n_rows"])
        places = graph.op("Unsqueeze", graph.op("Cast", lengths, to=ir.DataType.INT64), graph.ints(1))
        return cls(graph, ids, lengths, graph.op("Sub", places, graph.ints(1)))

    def last_states(self, x: ir.Value) -> ir.Value:
        """Return what stands at each row's last place, (n_rows, 1, n_features)."""
        found = self.graph.op("GatherND", x, self.last, batch_dims=1)
        return self.graph.op("Unsqueeze", found, self.graph.ints(1))

    def repeated(self, x: ir.Value, n_kv_heads: int, n_heads: int, size: int) -> ir.Value:
        """Return keys or values, (n_rows, n, n_kv_heads * size), once for each head that asks them."""
        if n_kv_heads == n_heads:
            return x
        graph = self.graph
        apart = graph.op("Reshape", x, graph.ints(0, 0, n_kv_heads, 1, size))
        each = graph.op("Tile", apart, graph.ints(1, 1, 1, n_heads // n_kv_heads, 1))
        return graph.op("Reshape", each, graph.ints(0, 0, n_heads * size))
