"""Rows of a run as a matrix, padded to the longest: what the operators for TensorRT know of them."""

from collections.abc import Callable

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph
from rankrt_export.targets import plain


class PaddedRows:
    """Inputs input_ids (n_rows, longest), lengths (n_rows,) and if need be token_type_ids, as input_ids; all int32."""

    layout: Layout = "padded"
    _integers = ir.DataType.INT32

    def __init__(self, graph: Graph, places: Callable[[Graph, ir.Value], ir.Value] = plain.places) -> None:
        """Take how the places of tokens in their rows are found: (longest,), or (n_rows, longest)."""
        self._graph = graph
        self.ids = graph.input("input_ids", self._integers, ["n_rows", "longest"])
        self._places = places(graph, self.ids)
        # (n_rows,) and (n_rows, longest)
        self._lengths, self._is_there = self._extent()
        self._mask = plain.mask(graph, self._is_there, axes=(1, 2))

    def _extent(self) -> tuple[ir.Value, ir.Value]:
        """Declare the lengths of the rows. Return them, and which places have a token."""
        lengths = self._graph.input("lengths", self._integers, ["n_rows"])
        return lengths, self._graph.op("Less", self._places, self._graph.op("Unsqueeze", lengths, self._graph.ints(1)))

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each place of a row, (..., longest, n_features)."""
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), self._places)

    def token_types(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each token's type, (n_rows, longest, n_features)."""
        types = self._graph.input("token_type_ids", self._integers, ["n_rows", "longest"])
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), types)

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        return self._graph.op("Gather", hidden, self._graph.int_scalar(0), axis=1)
