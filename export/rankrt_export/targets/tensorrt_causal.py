"""The TensorRT target of causal models: a matrix of rows, and plain operators that TensorRT fuses itself.

As in `tensorrt`, attention has the shape that TensorRT recognises. Norms, softmax and the rotation by positions are
fp32, by casts. The mask is the same for all rows: it hides the tokens after each token. In the last layer a row's last
token is the only query, and there the mask hides the padding.
"""

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph.graph import Graph, RotaryTables
from rankrt_export.targets import plain
from rankrt_export.targets.padded_causal import PaddedCausalOperators
from rankrt_export.targets.segment import SegmentShape


class CausalTensorRtOperators(PaddedCausalOperators):
    """Operators of ONNX."""

    def __init__(self, graph: Graph, shape: SegmentShape) -> None:
        super().__init__(graph, shape)
        self._places = plain.places(graph, self.states)
        is_before = graph.op("LessOrEqual", self._places, graph.op("Unsqueeze", self._places, graph.ints(1)))
        is_own = graph.op("Less", self._places, graph.op("Unsqueeze", self.lengths, graph.ints(1)))
        self._causal = plain.mask(graph, is_before, axes=(0, 1))
        self._own = plain.mask(graph, is_own, axes=(1, 2))

    def last_layer_queries(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, 1, n_features)."""
        return self.last_layer_outputs(hidden)

    def rotated(self, x: ir.Value, tables: RotaryTables, *, n_heads: int, is_last_layer: bool) -> ir.Value:
        """Rotate the features of each head by the token's position, in float32."""
        return plain.rotated(self.graph, x, tables, self.last if is_last_layer else self._places, n_heads=n_heads)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last_layer: bool, window: int | None
    ) -> ir.Value:
        """Attend from each token, or from each row's last one, to itself and the tokens before it."""
        self.check_sees_all(window)
        key, value = self.for_each_head(key, n_heads), self.for_each_head(value, n_heads)
        mask = self._own if is_last_layer else self._causal
        return plain.attention(self.graph, query, key, value, mask, self.shape.head_size)

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Normalise, all in float32."""
        graph = self.graph
        squares = graph.op("ReduceMean", graph.op("Mul", x, x), graph.ints(-1))
        root = graph.op("Sqrt", graph.op("Add", squares, graph.scalar(np.float32(epsilon))))
        return graph.as_states(graph.op("Mul", graph.op("Div", x, root), graph.array(name, scale)))

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x)."""
        return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))
