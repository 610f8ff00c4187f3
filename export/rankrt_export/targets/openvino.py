"""OpenVINO on a CPU: rows concatenated, attention alone over a matrix of them, in plain operators.

OpenVINO has none of ONNX Runtime's operators, and no attention over rows of any lengths. So products, norms and
activations see concatenated rows, without padding. Attention sees a matrix. Gathers lead there and back; with 6 layers
of XLM-R-large they are within the noise. OpenVINO fuses the plain operators of attention itself.

The graph is fp32. OpenVINO computes it in brain floats because loading asks it to.
"""

import onnx_ir as ir

from rankrt_export.targets import plain
from rankrt_export.targets.spread_rows import SpreadRows


class OpenVinoOperators(SpreadRows):
    """Operators of encoders with absolute positions and norms after their layers."""

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend to all tokens of a row."""
        graph = self._graph
        size = graph.weights.shape(f"{layers[0]}.weight")[0] // n_heads
        query, key, value = (graph.linear(x, name) for x, name in zip((queries, hidden, hidden), layers, strict=True))
        first_or_all = graph.op("Unsqueeze", query, graph.ints(1)) if first_only else self._filled(query)
        attended = plain.attention(graph, first_or_all, self._filled(key), self._filled(value), self._mask, size)
        return graph.op("Squeeze", attended, graph.ints(1)) if first_only else self._flat(attended)

    def add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise x + y over the features."""
        return self._graph.layer_norm(self._graph.op("Add", x, y), norm, epsilon)

    def linear_add_norm(self, x: ir.Value, layer: str, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise the layer's output for x, plus y."""
        return self.add_norm(self._graph.linear(x, layer), y, norm, epsilon)

    def linear_gelu(self, x: ir.Value, layer: str) -> ir.Value:
        """Return the exact GELU of the layer's output for x."""
        return self._graph.op("Gelu", self._graph.linear(x, layer))
