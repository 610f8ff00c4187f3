"""Rows of a run concatenated, and as a matrix for attention: what the operators for OpenVINO know of them."""

import numpy as np
import onnx_ir as ir

from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph
from rankrt_export.targets import plain
from rankrt_export.targets.varlen_rows import VarlenRows


class SpreadRows(VarlenRows):
    """The inputs of `VarlenRows`. token_offset, (n_rows, width), is as wide as each of the rows needs, or wider."""

    layout: Layout = "spread"

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        ints = graph.ints
        starts, stops = (
            graph.op("Unsqueeze", graph.op("Slice", self._row_offsets, ints(start), ints(stop)), ints(1))
            for start, stop in ((0, -1), (1, 2**62))
        )
        n_tokens = graph.op("Slice", self._row_offsets, ints(-1), ints(2**62))
        # (width,), and (n_rows, width): the places of a row's tokens in the run, and after its end those of other rows.
        self._places = plain.places(graph, self._token_offset)
        unbounded = graph.op("Add", starts, self._places)
        last = graph.op("Sub", n_tokens, graph.constant("int32(1)", np.array(1, np.int32)))
        self._tokens = graph.op("Min", unbounded, last)
        self._lengths = graph.op("Sub", stops, starts)
        self._is_there = graph.op("Less", unbounded, stops)
        self._mask = plain.mask(graph, self._is_there, axes=(1, 2))
        offsets = graph.op("Reshape", self._token_offset, ints(-1))
        self._place_of_token = graph.op("Slice", offsets, ints(0), graph.op("Cast", n_tokens, to=ir.DataType.INT64))

    def _filled(self, x: ir.Value) -> ir.Value:
        """Return states of a run, (n_tokens, n_features), as a matrix, (n_rows, width, n_features)."""
        return self._graph.op("Gather", x, self._tokens)

    def _flat(self, x: ir.Value) -> ir.Value:
        """Return a matrix of states, (n_rows, width, n_features), as those of the run, (n_tokens, n_features)."""
        return self._graph.op("Gather", self._graph.op("Flatten", x, axis=2), self._place_of_token)
