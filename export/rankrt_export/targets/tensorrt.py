"""The TensorRT target: a matrix of padded rows, and plain operators that TensorRT fuses itself.

TensorRT has none of ONNX Runtime's operators. Graphs are strongly typed, so they contain the precision: sums, norms and
softmax are always fp32, by casts that fuse with their neighbours. The mask comes from `lengths`.
"""

import onnx_ir as ir

from rankrt_export.targets import plain
from rankrt_export.targets.padded_rows import PaddedRows


class TensorRtOperators(PaddedRows):
    """Operators of encoders with absolute positions and norms after their layers."""

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend to all tokens except padding."""
        graph = self._graph
        size = graph.weights.shape(f"{layers[0]}.weight")[0] // n_heads
        if first_only:
            queries = graph.op("Unsqueeze", queries, graph.ints(1))
        query, key, value = (graph.linear(x, name) for x, name in zip((queries, hidden, hidden), layers, strict=True))
        attended = plain.attention(graph, query, key, value, self._mask, size)
        return graph.op("Squeeze", attended, graph.ints(1)) if first_only else attended

    def add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise x + y, both in fp32."""
        graph = self._graph
        total = graph.op("Add", graph.as_float32(x), graph.as_float32(y))
        return graph.as_states(graph.layer_norm(total, norm, epsilon))

    def linear_add_norm(self, x: ir.Value, layer: str, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise the layer's output for x, plus y."""
        return self.add_norm(self._graph.linear(x, layer), y, norm, epsilon)

    def linear_gelu(self, x: ir.Value, layer: str) -> ir.Value:
        """Return the exact GELU of the layer's output for x."""
        return self._graph.op("Gelu", self._graph.linear(x, layer))
