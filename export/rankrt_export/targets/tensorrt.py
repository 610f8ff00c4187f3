"""The TensorRT target: a matrix of rows, filled up to the longest, and plain operators that TensorRT fuses itself.

TensorRT knows none of ONNX Runtime's operators, and recognises attention by its shape: a product, a softmax, a product,
with the scale multiplied into the query before (its guide, "Fused Attention"). Graphs are strongly typed, so precision
is written into them: sums, norms and softmax are fp32 whatever the states are, by casts that fuse with what is around
them. Places come from `lengths`; the mask is added, and adds 0 where all rows are equally long.
"""

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact import Layout
from rankrt_export.graph import FLOAT, HALF, Graph

# What hides a place: exp() of it is 0, and no score that is added to it makes it infinite.
_HIDDEN = np.float32(-1e30)
_TYPE_OF = {FLOAT: np.float32, HALF: np.float16}


class TensorRtEngine:
    """Inputs input_ids (n_rows, longest) and lengths (n_rows,), both int32."""

    layout: Layout = "padded"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        int32 = ir.DataType.INT32
        self.ids = graph.input("input_ids", int32, ["n_rows", "longest"])
        lengths = graph.input("lengths", int32, ["n_rows"])
        self._places = self._range(graph.op("Shape", self.ids, start=1, end=2))
        is_there = graph.op("Less", self._places, graph.op("Unsqueeze", lengths, graph.ints(1)))
        mask = graph.op("Where", is_there, graph.scalar(np.float32(0)), graph.scalar(_HIDDEN))
        self._mask = graph.op("Unsqueeze", mask, graph.ints(1, 2))

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return the first rows of the table, (longest, n_features), which are the same for all rows of the run."""
        return self._graph.op("Gather", self._graph.array(name, table, self._graph.states), self._places)

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        return self._graph.op("Gather", hidden, self._graph.int_scalar(0), axis=1)

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend to all tokens but those that are filled up."""
        graph, n_features = self._graph, self._graph.weights.shape(f"{layers[0]}.weight")[0]
        size = n_features // n_heads
        scale = graph.constant(f"{size}**-0.5", np.array(size**-0.5, _TYPE_OF[graph.states]))
        query = graph.op("Mul", graph.linear(queries, layers[0]), scale)
        query = self._by_head(query, n_heads, size, perm=[0, 2, 1, 3], n_tokens=1 if first_only else 0)
        key = self._by_head(graph.linear(hidden, layers[1]), n_heads, size, perm=[0, 2, 3, 1])
        value = self._by_head(graph.linear(hidden, layers[2]), n_heads, size, perm=[0, 2, 1, 3])
        attended = graph.op("MatMul", self._shares(graph.op("MatMul", query, key)), value)
        together = graph.op("Transpose", attended, perm=[0, 2, 1, 3])
        return graph.op("Reshape", together, graph.ints(0, n_features) if first_only else graph.ints(0, 0, n_features))

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

    def _range(self, stop: ir.Value) -> ir.Value:
        """Return 0 to stop - 1 in int32; stop is a shape of one number."""
        graph = self._graph
        zero, one = (graph.constant(f"int32({i})", np.array(i, np.int32)) for i in (0, 1))
        limit = graph.op("Cast", graph.op("Squeeze", stop, graph.ints(0)), to=ir.DataType.INT32)
        return graph.op("Range", zero, limit, one)

    def _by_head(self, x: ir.Value, n_heads: int, size: int, *, perm: list[int], n_tokens: int = 0) -> ir.Value:
        """Return states as (n_rows, n_tokens, n_heads, size), transposed; 0 tokens are as many as there are."""
        apart = self._graph.op("Reshape", x, self._graph.ints(0, n_tokens, n_heads, size))
        return self._graph.op("Transpose", apart, perm=perm)

    def _shares(self, scores: ir.Value) -> ir.Value:
        """Return what each token's attention gives to each other, (n_rows, n_heads, n_asking, longest)."""
        graph = self._graph
        seen = graph.op("Add", graph.as_float32(scores), self._mask)
        return graph.as_states(graph.op("Softmax", seen, axis=-1))
