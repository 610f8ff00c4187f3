"""The CUDA target of causal models: a matrix of rows, causal attention in one operator.

PackedMultiHeadAttention takes rows of any lengths, but has no causal attention. MultiHeadAttention has it. It uses
flash attention in half precision if it has neither mask nor bias nor past (onnxruntime's contrib_ops/cuda/bert/
multihead_attention.cc). It has as many heads for keys as for queries, so shared ones are repeated. In the last layer
all tokens are queries, and one a row is kept. A single query would need a mask, and with it another kernel.

It has neither windows nor bounds, which Gemma 2 has. A layer with one of these is written in plain operators. They hold
a matrix of scores for each head. GroupQueryAttention has both, but on CUDA in half precision only, and from flash
attention alone: it would be a second model for fp32.

As in `cuda`, the graph has the operators as they run, and none computes a shape.
"""

from functools import cached_property

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph.graph import MICROSOFT, RotaryTables
from rankrt_export.targets import fused, plain
from rankrt_export.targets.padded_causal import PaddedCausalOperators


class CausalCudaOperators(PaddedCausalOperators):
    """Operators of ONNX Runtime's CUDA provider."""

    @cached_property
    def places(self) -> ir.Value:
        """The places of tokens in their rows, (n_rows, longest), in int32."""
        return plain.counted(self.graph, self.states)

    def last_layer_queries(self, hidden: ir.Value) -> ir.Value:
        """Return the states of all tokens, (n_rows, longest, n_features)."""
        return hidden

    def rotated(self, x: ir.Value, tables: RotaryTables, *, n_heads: int, is_last_layer: bool) -> ir.Value:
        """Rotate the features of each head by the token's position, counted from 0 in every row."""
        graph = self.graph
        stored = tables.stored(graph, graph.states)
        return graph.op("RotaryEmbedding", x, graph.ints(0), *stored, domain=MICROSOFT, num_heads=n_heads)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last_layer: bool, window: int | None
    ) -> ir.Value:
        """Attend from every token to itself and those before it; of the last layer only the outputs are returned."""
        if window is None and self.shape.cap is None:
            attended = self._flash_attention(query, key, value, n_heads)
        else:
            attended = self.plain_attention(query, key, value, self.causal_mask(window), n_heads=n_heads)
        return self.last_layer_outputs(attended) if is_last_layer else attended

    def _flash_attention(self, query: ir.Value, key: ir.Value, value: ir.Value, n_heads: int) -> ir.Value:
        states = (query, self.for_each_head(key, n_heads), self.for_each_head(value, n_heads))
        attributes = {"num_heads": n_heads, "unidirectional": 1, "scale": self.shape.scale}
        return self.graph.op("MultiHeadAttention", *states, domain=MICROSOFT, **attributes)

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Normalise in one operator, from float32 to the type of its scale."""
        return fused.rms_norm(self.graph, x, name, scale, epsilon)

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x), in one pass."""
        return fused.silu(self.graph, x)
