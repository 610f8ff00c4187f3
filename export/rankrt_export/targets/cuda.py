"""The CUDA target: rows concatenated, attention over all of them in one operator.

PackedMultiHeadAttention takes rows of any lengths. It uses flash attention if query, key and value are separate, in
half precision and without a bias (onnxruntime's contrib_ops/cuda/bert/packed_multihead_attention.cc). A product that
adds a bias costs two more passes over its output in ONNX Runtime 1.31: one writes the bias, one reads it back. So only
the query's product adds its bias. The operator after each other product adds its bias: GELU, or sum and norm.

The graph has the operators as they run, so nothing depends on an optimizer. SkipLayerNormalization sums squares in fp32
in the wheels that rankrt takes (ONNX Runtime's pull request 28682). No operator computes a shape: ONNX Runtime would
put it on the CPU, where none may be.

The host computes the places of tokens, so no operator removes or restores padding.
"""

import onnx_ir as ir

from rankrt_export.checkpoint.weights import read
from rankrt_export.graph.graph import MICROSOFT, Graph
from rankrt_export.targets.varlen_rows import VarlenRows


class CudaOperators(VarlenRows):
    """Operators of encoders with absolute positions and norms after their layers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        # The output of an attention without its value's bias, and that bias's name.
        self._without_bias: dict[ir.Value, str] = {}

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend from every token, because the operator needs as many queries as keys; return the first ones if asked.

        A key's bias adds the same to all scores of a query, so softmax does not change. The shares of a query sum to 1,
        so a value's bias passes unchanged, and the layer after the attention adds it.
        """
        query, key, value = layers
        states = (
            self._graph.linear(hidden, query),
            self._graph.product(hidden, key),
            self._graph.product(hidden, value),
        )
        places = (self._token_offset, self._row_offsets)
        attended = self._graph.op(
            "PackedMultiHeadAttention", *states, None, *places, domain=MICROSOFT, num_heads=n_heads
        )
        attended = self.first_tokens(attended) if first_only else attended
        self._without_bias[attended] = f"{value}.bias"
        return attended

    def add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise x + y over the features."""
        return self._add_norm(x, y, norm, epsilon)

    def linear_add_norm(self, x: ir.Value, layer: str, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise the layer's output for x, plus y; the norm's operator adds the layer's bias."""
        bias = self._vector(f"{layer}.bias")
        if (left_out := self._without_bias.get(x)) is not None:
            weights = self._graph.weights
            own, weight, other = (read(weights, name) for name in (f"{layer}.bias", f"{layer}.weight", left_out))
            bias = self._graph.array(f"{layer}.bias+{left_out}", own + weight @ other, self._graph.states)
        return self._add_norm(self._graph.product(x, layer), y, norm, epsilon, bias)

    def linear_gelu(self, x: ir.Value, layer: str) -> ir.Value:
        """Return the exact GELU of the layer's output for x, whose bias the GELU's operator adds."""
        bias = self._vector(f"{layer}.bias")
        return self._graph.op("BiasGelu", self._graph.product(x, layer), bias, domain=MICROSOFT)

    def _add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float, *bias: ir.Value) -> ir.Value:
        weights = (self._vector(f"{norm}.weight"), self._vector(f"{norm}.bias"))
        return self._graph.op("SkipLayerNormalization", x, y, *weights, *bias, domain=MICROSOFT, epsilon=epsilon)

    def _vector(self, name: str) -> ir.Value:
        return self._graph.vector(name, self._graph.states)
