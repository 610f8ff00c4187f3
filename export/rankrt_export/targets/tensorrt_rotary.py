"""The TensorRT target of encoders with rotary positions, some of whose layers see a window around each token.

As in `tensorrt`, attention is written as TensorRT recognises it. A window is a mask there, so it saves no work: its
cost grows with the square of a row's length.
"""

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import Graph, RotaryTables
from rankrt_export.targets import plain
from rankrt_export.targets.padded_rows import PaddedRows


class RotaryTensorRtOperators(PaddedRows):
    """Operators of ONNX."""

    def __init__(self, graph: Graph, n_heads: int, head_size: int) -> None:
        super().__init__(graph)
        self._n_heads = n_heads
        self._head_size = head_size
        self._windows: dict[int, ir.Value] = {}

    def means(self, hidden: ir.Value) -> ir.Value:
        """Return the mean of each row's tokens, (n_rows, n_features), of float32."""
        graph, ones = self._graph, self._graph.ints(1)
        is_there = graph.op("Unsqueeze", self._is_there, graph.ints(2))
        total = graph.op(
            "ReduceSum", graph.op("Where", is_there, hidden, graph.scalar(np.float32(0))), ones, keepdims=0
        )
        lengths = graph.op("Cast", self._lengths, to=ir.DataType.FLOAT)
        return graph.op("Div", total, graph.op("Unsqueeze", lengths, ones))

    def rotated(self, x: ir.Value, tables: RotaryTables) -> ir.Value:
        """Turn the features of each head by the token's position, in float32."""
        return plain.rotated(self._graph, x, tables, self._places, n_heads=self._n_heads)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, reach: int | None, first_only: bool
    ) -> ir.Value:
        """Attend to all tokens but the padding and those out of reach."""
        graph = self._graph
        if first_only:
            query = graph.op("Unsqueeze", self.first_tokens(query), graph.ints(1))
        mask = self._mask if reach is None else self._window(reach)
        if first_only and reach is not None:
            mask = graph.op("Slice", mask, graph.ints(0), graph.ints(1), graph.ints(2))
        attended = plain.attention(graph, query, key, value, mask, self._head_size)
        return graph.op("Squeeze", attended, graph.ints(1)) if first_only else attended

    def _window(self, reach: int) -> ir.Value:
        """Return the mask of what is within reach, (n_rows, 1, longest, longest)."""
        if reach not in self._windows:
            graph = self._graph
            is_near = plain.is_near(graph, self._places, reach)
            is_there = graph.op("Unsqueeze", self._is_there, graph.ints(1))
            self._windows[reach] = plain.mask(graph, graph.op("And", is_near, is_there), axes=(1,))
        return self._windows[reach]
