"""The TensorRT target of causal models: a matrix of rows, and plain operators that TensorRT fuses itself.

As in `tensorrt`, attention has the shape that TensorRT recognises. Norms, softmax and the rotation by positions are
fp32, by casts. The mask is the same for all rows: it hides the tokens after each token, and those before its window. In
the last layer a row's last token is the only query, and there the mask hides the padding.
"""

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph.graph import RotaryTables
from rankrt_export.targets import plain
from rankrt_export.targets.padded_causal import PaddedCausalOperators


class CausalTensorRtOperators(PaddedCausalOperators):
    """Operators of ONNX."""

    def last_layer_queries(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, 1, n_features)."""
        return self.last_layer_outputs(hidden)

    def rotated(self, x: ir.Value, tables: RotaryTables, *, n_heads: int, is_last_layer: bool) -> ir.Value:
        """Rotate the features of each head by the token's position, in float32."""
        return plain.rotated(self.graph, x, tables, self.last if is_last_layer else self.places, n_heads=n_heads)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last_layer: bool, window: int | None
    ) -> ir.Value:
        """Attend from each token, or from each row's last one, to itself and the tokens before it."""
        mask = self._mask_of_last(window) if is_last_layer else self.causal_mask(window)
        return self.plain_attention(query, key, value, mask, n_heads=n_heads)

    def _mask_of_last(self, window: int | None) -> ir.Value:
        """Return what hides from each row's last token the padding, and the tokens before its window."""
        graph, stops = self.graph, self.graph.op("Unsqueeze", self.lengths, self.graph.ints(1))
        is_seen = graph.op("Less", self.places, stops)
        if window is not None:
            is_near = graph.op("LessOrEqual", stops, graph.op("Add", self.places, self.int32(window)))
            is_seen = graph.op("And", is_seen, is_near)
        return plain.mask(graph, is_seen, axes=(1, 2))

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Normalise, all in float32."""
        graph = self.graph
        squares = graph.op("ReduceMean", graph.op("Mul", x, x), graph.ints(-1))
        root = graph.op("Sqrt", graph.op("Add", squares, graph.scalar(np.float32(epsilon))))
        return graph.as_states(graph.op("Mul", graph.op("Div", x, root), graph.array(name, scale)))

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x)."""
        return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))
