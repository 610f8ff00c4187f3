"""Rows of a run on a GPU, concatenated: what the operators for CUDA know of them."""

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph


class VarlenRows:
    """Inputs input_ids, positions (n_tokens,), row_offsets (n_rows + 1,), token_offset (n_rows, longest), all int32.

    And token_type_ids (n_tokens,), also int32, of a model that has them.
    """

    layout: Layout = "varlen"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        int32 = ir.DataType.INT32
        self.ids = graph.input("input_ids", int32, ["n_tokens"])
        self._positions = graph.input("positions", int32, ["n_tokens"])
        self._row_offsets = graph.input("row_offsets", int32, ["n_offsets"])
        self._token_offset = graph.input("token_offset", int32, ["n_rows", "longest"])
        self._starts = graph.op("Slice", self._row_offsets, graph.ints(0), graph.ints(-1))

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each token's position, (n_tokens, n_features)."""
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), self._positions)

    def token_types(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each token's type, (n_tokens, n_features)."""
        types = self._graph.input("token_type_ids", ir.DataType.INT32, ["n_tokens"])
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), types)

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        return self._graph.op("Gather", hidden, self._starts)
