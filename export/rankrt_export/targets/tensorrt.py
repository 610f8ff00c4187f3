"""The TensorRT target: a matrix of padded rows, and plain operators that TensorRT fuses itself.

TensorRT has none of ONNX Runtime's operators. Graphs are strongly typed, so they contain the precision: sums, norms and
softmax are always fp32, by casts that fuse with their neighbours. The mask comes from `lengths`.
"""

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import Graph
from rankrt_export.targets import plain


class TensorRtEngine:
    """Inputs input_ids (n_rows, longest), lengths (n_rows,) and if need be token_type_ids, as input_ids; all int32."""

    layout: Layout = "padded"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        int32 = ir.DataType.INT32
        self.ids = graph.input("input_ids", int32, ["n_rows", "longest"])
        lengths = graph.input("lengths", int32, ["n_rows"])
        self._places = plain.places(graph, self.ids)
        is_there = graph.op("Less", self._places, graph.op("Unsqueeze", lengths, graph.ints(1)))
        self._mask = plain.mask(graph, is_there, axes=(1, 2))

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return the first rows of the table, (longest, n_features), the same for all rows of the run."""
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), self._places)

    def token_types(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each token's type, (n_rows, longest, n_features)."""
        types = self._graph.input("token_type_ids", ir.DataType.INT32, ["n_rows", "longest"])
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), types)

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        return self._graph.op("Gather", hidden, self._graph.int_scalar(0), axis=1)

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
