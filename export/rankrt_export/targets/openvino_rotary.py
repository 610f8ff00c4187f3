"""OpenVINO on a CPU, for encoders with rotary positions, some of whose layers see a window around each token.

As in `openvino`, attention alone is over a matrix of rows. A window is a mask there, so it saves no work: its cost
grows with the square of a row's length.
"""

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import Graph, RotaryTables
from rankrt_export.targets import plain
from rankrt_export.targets.spread_rows import SpreadRows


class RotaryOpenVinoOperators(SpreadRows):
    """Operators of ONNX."""

    def __init__(self, graph: Graph, n_heads: int, head_size: int) -> None:
        super().__init__(graph)
        self._n_heads = n_heads
        self._head_size = head_size
        self._windows: dict[int, ir.Value] = {}

    def means(self, hidden: ir.Value) -> ir.Value:
        """Return the mean of each row's tokens, (n_rows, n_features), of float32."""
        graph = self._graph
        is_there = graph.op("Unsqueeze", self._is_there, graph.ints(2))
        states = graph.op("Where", is_there, self._filled(hidden), graph.scalar(np.float32(0)))
        total = graph.op("ReduceSum", states, graph.ints(1), keepdims=0)
        return graph.op("Div", total, graph.op("Cast", self._lengths, to=ir.DataType.FLOAT))

    def rotated(self, x: ir.Value, tables: RotaryTables) -> ir.Value:
        """Turn the features of each head by the token's position."""
        graph, zero = self._graph, self._graph.ints(0)
        as_one_row = graph.op("Unsqueeze", x, zero)
        turned = plain.rotated(graph, as_one_row, tables, self._positions, n_heads=self._n_heads)
        return graph.op("Squeeze", turned, zero)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, reach: int | None, first_only: bool
    ) -> ir.Value:
        """Attend to all tokens of a row but those out of reach."""
        graph = self._graph
        queries = graph.op("Unsqueeze", self.first_tokens(query), graph.ints(1)) if first_only else self._filled(query)
        mask = self._mask if reach is None else self._window(reach)
        if first_only and reach is not None:
            mask = graph.op("Slice", mask, graph.ints(0), graph.ints(1), graph.ints(2))
        attended = plain.attention(graph, queries, self._filled(key), self._filled(value), mask, self._head_size)
        return graph.op("Squeeze", attended, graph.ints(1)) if first_only else self._flat(attended)

    def _window(self, reach: int) -> ir.Value:
        """Return the mask of what is within reach, (n_rows, 1, width, width)."""
        if reach not in self._windows:
            graph = self._graph
            is_near = plain.is_near(graph, self._places, reach)
            is_there = graph.op("Unsqueeze", self._is_there, graph.ints(1))
            self._windows[reach] = plain.mask(graph, graph.op("And", is_near, is_there), axes=(1,))
        return self._windows[reach]
