"""The CUDA target: rows concatenated, attention over all of them in one operator.

PackedMultiHeadAttention takes rows of any lengths. It uses flash attention if query, key and value are separate, in
half precision and without a bias (onnxruntime's contrib_ops/cuda/bert/packed_multihead_attention.cc). A product that
adds a bias costs two more passes over its output in ONNX Runtime 1.31: one writes the bias, one reads it back. On an
H100 these were 8 % of all time for the query's bias alone. So no product adds a bias. The operator after it does: GELU,
or sum and norm. The query's bias is part of its weights in fp16 (see `constant_sum`). In fp32, which is for checks, its
product adds it.

The graph has the operators as they run, so nothing depends on an optimizer. SkipLayerNormalization sums squares in fp32
in the wheels that rankrt takes (ONNX Runtime's pull request 28682). No operator computes a shape: ONNX Runtime would
put it on the CPU, where none may be.

The host computes the places of tokens, so no operator removes or restores padding.
"""

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.weights import read
from rankrt_export.graph.graph import HALF, MICROSOFT, Graph
from rankrt_export.targets.constant_sum import ConstantSum
from rankrt_export.targets.varlen_rows import VarlenRows

# The place of its bias among the inputs of SkipLayerNormalization.
_NORM_BIAS = 3


class CudaOperators(VarlenRows):
    """Operators of encoders with absolute positions and norms after their layers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        # The output of an attention without its value's bias, and that bias.
        self._left_out: dict[ir.Value, Float32Array] = {}
        # The norm that made states, what was added to them, and the states that first tokens' are a part of.
        self._norms: dict[ir.Value, str] = {}
        self._shifts: dict[ir.Value, Float32Array] = {}
        self._wholes: dict[ir.Value, ir.Value] = {}

    def first_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's first token, (n_rows, n_features)."""
        first = super().first_tokens(hidden)
        self._wholes[first] = hidden
        return first

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend from every token, because the operator needs as many queries as keys; return the first ones if asked.

        A constant of all keys adds the same to all scores of a query, so softmax does not change. Such constants are a
        key's bias, and a shift of the states. The shares of a query sum to 1. So constants of all values pass, and the
        layer after the attention adds them.
        """
        query, key, value = layers
        left_out = self._read(f"{value}.bias")
        if (states := self._with_constant_sum(hidden)) is None:
            queries = self._graph.linear(hidden, query)
        else:
            folded = states.folded(self._read(f"{query}.weight"), self._read(f"{query}.bias"))
            weight = self._graph.array(f"{query}.weight+bias", folded, self._graph.states)
            queries = self._graph.op("Gemm", hidden, weight, transB=1)
            left_out = left_out - self._read(f"{value}.weight") @ states.shift
        parts = (queries, self._graph.product(hidden, key), self._graph.product(hidden, value))
        places = (self._token_offset, self._row_offsets)
        attended = self._graph.op(
            "PackedMultiHeadAttention", *parts, None, *places, domain=MICROSOFT, num_heads=n_heads
        )
        attended = self.first_tokens(attended) if first_only else attended
        self._left_out[attended] = left_out
        return attended

    def add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise x + y over the features."""
        return self._add_norm(x, y, norm, epsilon)

    def linear_add_norm(self, x: ir.Value, layer: str, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise the layer's output for x, plus y; the norm's operator adds the layer's bias."""
        bias = self._read(f"{layer}.bias")
        if (left_out := self._left_out.get(x)) is not None:
            bias = bias + self._read(f"{layer}.weight") @ left_out
        if (shift := self._shifts.get(self._wholes.get(y, y))) is not None:
            bias = bias - shift
        added = self._graph.array(f"{layer}.bias+constants", bias, self._graph.states)
        return self._add_norm(self._graph.product(x, layer), y, norm, epsilon, added)

    def linear_gelu(self, x: ir.Value, layer: str) -> ir.Value:
        """Return the exact GELU of the layer's output for x, whose bias the GELU's operator adds."""
        bias = self._vector(f"{layer}.bias")
        return self._graph.op("BiasGelu", self._graph.product(x, layer), bias, domain=MICROSOFT)

    def _add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float, *bias: ir.Value) -> ir.Value:
        weights = (self._vector(f"{norm}.weight"), self._vector(f"{norm}.bias"))
        states = self._graph.op("SkipLayerNormalization", x, y, *weights, *bias, domain=MICROSOFT, epsilon=epsilon)
        self._norms[states] = norm
        return states

    def _with_constant_sum(self, states: ir.Value) -> ConstantSum | None:
        """Shift the norm that made the states, so that they have a constant sum; None if they cannot have one."""
        norm, node = self._norms.get(states), states.producer()
        if norm is None or node is None or self._graph.states != HALF:
            return None
        found = ConstantSum.of(self._read(f"{norm}.weight"), self._read(f"{norm}.bias"))
        if found is not None:
            node.replace_input_with(_NORM_BIAS, self._graph.array(f"{norm}.bias+shift", found.bias, HALF))
            self._shifts[states] = found.shift
        return found

    def _read(self, name: str) -> Float32Array:
        return read(self._graph.weights, name)

    def _vector(self, name: str) -> ir.Value:
        return self._graph.vector(name, self._graph.states)
