"""Rows of a run on a CPU, concatenated: what the operators of every encoder there know of them."""

from functools import cached_property

import onnx_ir as ir
from onnx_ir.tape import Tape

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph
from rankrt_export.targets.each_row import Row, each_row


class PackedRows:
    """Inputs input_ids (n_tokens,), row_offsets (n_rows + 1,) and if need be token_type_ids (n_tokens,), all int32."""

    layout: Layout = "packed"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.ids = graph.input("input_ids", ir.DataType.INT32, ["n_tokens"])
        self._row_offsets = graph.input("row_offsets", ir.DataType.INT32, ["n_offsets"])
        self._offsets = graph.op("Cast", self._row_offsets, to=ir.DataType.INT64)

    @cached_property
    def _n_rows(self) -> ir.Value:
        """How often a loop over rows turns; a graph for kernels has none."""
        return self._graph.op("Sub", self._graph.op("Size", self._offsets), self._graph.int_scalar(1))

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return the first rows of the table for each row of the run, (n_tokens, n_features)."""
        zero, stored = self._graph.ints(0), self._graph.array(name, table)

        def of_row(tape: Tape, row: Row) -> ir.Value:
            return tape.op("Slice", [stored, zero, tape.op("Sub", [row.stop, row.start]), zero])

        return each_row(self._graph, self._n_rows, self._offsets, of_row)

    def token_types(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each token's type, (n_tokens, n_features)."""
        types = self._graph.input("token_type_ids", ir.DataType.INT32, ["n_tokens"])
        return self._graph.op("Gather", self._graph.array(name, table), types)

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        starts = self._graph.op("Slice", self._offsets, self._graph.ints(0), self._graph.ints(-1))
        return self._graph.op("Gather", hidden, starts)
