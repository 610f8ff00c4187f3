"""The TensorRT target of causal models: a matrix of rows, and plain operators that TensorRT fuses itself.

As in `tensorrt`, attention is written as TensorRT recognises it, and norms, softmax and the turning of positions are
fp32 by casts. The mask is the same for all rows: what stands behind a token. In a run's last layer only a row's last
token asks, and there the mask hides what its row is filled up with.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact import Layout
from rankrt_export.graph import Graph, RotaryTables
from rankrt_export.targets import plain
from rankrt_export.targets.padded_causal import PaddedRows
from rankrt_export.targets.segment import SegmentShape


class CausalTensorRtEngine:
    """Inputs input_ids (n_rows, longest) and lengths (n_rows,), both int32."""

    layout: Layout = "padded"
    n_axes = 2

    def __init__(self, graph: Graph, shape: SegmentShape) -> None:
        self._graph = graph
        self._shape = shape
        self._rows = PaddedRows.inputs(graph)
        self.states = self._rows.ids
        self._places = plain.places(graph, self.states)
        is_before = graph.op("LessOrEqual", self._places, graph.op("Unsqueeze", self._places, graph.ints(1)))
        is_own = graph.op("Less", self._places, graph.op("Unsqueeze", self._rows.lengths, graph.ints(1)))
        self._causal = plain.mask(graph, is_before, axes=(0, 1))
        self._own = plain.mask(graph, is_own, axes=(1, 2))

    def asking(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token."""
        return self.going_on(hidden)

    def going_on(self, x: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, 1, n_features)."""
        return self._rows.last_states(x)

    def rotated(self, x: ir.Value, tables: RotaryTables, *, n_heads: int, is_last: bool) -> ir.Value:
        """Turn the features of each head by the token's position, in float32."""
        graph, size = self._graph, self._shape.head_size
        places = self._rows.last if is_last else self._places
        cosine, sine = (
            graph.op("Unsqueeze", graph.op("Gather", table, places), graph.ints(-2)) for table in tables.stored(graph)
        )
        heads = graph.op("Reshape", graph.as_float32(x), graph.ints(0, 0, n_heads, size))
        first, second = (
            graph.op("Slice", heads, graph.ints(start), graph.ints(start + size // 2), graph.ints(-1))
            for start in (0, size // 2)
        )
        turned = graph.op(
            "Concat",
            graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)),
            graph.op("Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine)),
            axis=-1,
        )
        return graph.as_states(graph.op("Reshape", turned, graph.ints(0, 0, n_heads * size)))

    def attention(self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last: bool) -> ir.Value:
        """Attend to what stands before each token, or before each row's last one."""
        graph, size = self._graph, self._shape.head_size
        key, value = (self._rows.repeated(x, self._shape.n_kv_heads, n_heads, size) for x in (key, value))
        return plain.attention(graph, query, key, value, self._own if is_last else self._causal, size)

    def last_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, n_features), which alone went on."""
        return self._graph.op("Squeeze", hidden, self._graph.ints(1))

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Normalise, all in float32."""
        graph = self._graph
        squares = graph.op("ReduceMean", graph.op("Mul", x, x), graph.ints(-1))
        root = graph.op("Sqrt", graph.op("Add", squares, graph.scalar(np.float32(epsilon))))
        return graph.as_states(graph.op("Mul", graph.op("Div", x, root), graph.array(name, scale)))

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x)."""
        return self._graph.op("Mul", x, self._graph.op("Sigmoid", x))

    def outputs(self) -> Mapping[str, ir.Value]:
        """Return nothing: no run hands anything to another."""
        return {}
