"""The CUDA target of causal models: a matrix of rows, causal attention in one operator.

PackedMultiHeadAttention, which takes rows of any lengths, knows no causal attention. MultiHeadAttention does, and takes
flash attention in half precision where it has neither mask nor bias nor past (onnxruntime's contrib_ops/cuda/bert/
multihead_attention.cc); it has as many heads for keys as for queries, so shared ones are repeated. In a run's last
layer all tokens ask and one a row goes on: asking from one only would need a mask, and with it another kernel.

As in `cuda`, the operators are written as they are to run, and none computes a shape.
"""

from collections.abc import Mapping

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact import Layout
from rankrt_export.graph import MICROSOFT, Graph, RotaryTables
from rankrt_export.targets.padded_causal import PaddedRows
from rankrt_export.targets.segment import SegmentShape


class CausalCudaEngine:
    """Inputs input_ids (n_rows, longest) and lengths (n_rows,), both int32."""

    layout: Layout = "padded"
    n_axes = 2

    def __init__(self, graph: Graph, shape: SegmentShape) -> None:
        self._graph = graph
        self._shape = shape
        self._rows = PaddedRows.inputs(graph)
        self.states = self._rows.ids

    def asking(self, hidden: ir.Value) -> ir.Value:
        """Return the states of all tokens."""
        return hidden

    def going_on(self, x: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, 1, n_features)."""
        return self._rows.last_states(x)

    def rotated(self, x: ir.Value, tables: RotaryTables, *, n_heads: int, is_last: bool) -> ir.Value:
        """Turn the features of each head by the token's position."""
        graph = self._graph
        start, stored = graph.ints(0), tables.stored(graph, graph.states)
        return graph.op("RotaryEmbedding", x, start, *stored, domain=MICROSOFT, num_heads=n_heads)

    def attention(self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last: bool) -> ir.Value:
        """Attend from every token to what stands before it; only the last ones go on if `is_last`."""
        size = self._shape.head_size
        key, value = (self._rows.repeated(x, self._shape.n_kv_heads, n_heads, size) for x in (key, value))
        how = {"num_heads": n_heads, "unidirectional": 1}
        attended = self._graph.op("MultiHeadAttention", query, key, value, domain=MICROSOFT, **how)
        return self.going_on(attended) if is_last else attended

    def last_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, n_features), which alone went on."""
        return self._graph.op("Squeeze", hidden, self._graph.ints(1))

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Normalise in one operator, which takes float32 and gives the type of its scale."""
        stored = self._graph.array(name, scale, self._graph.states)
        return self._graph.op("SimplifiedLayerNormalization", x, stored, axis=-1, epsilon=epsilon, stash_type=1)

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x), in one pass."""
        return self._graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)

    def outputs(self) -> Mapping[str, ir.Value]:
        """Return nothing: no run hands anything to another."""
        return {}
