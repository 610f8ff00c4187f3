"""Encoders of the BERT family on a CPU with rankrt's own operators: rows concatenated, attention over all at once.

What the stock graph does in a Loop, row by row, attention does in one operator that knows the ends of rows. Attention
rounds to 16 bits, so it is for graphs that round layers to 8 bits anyway. FloatAttention does not. The operators are
specified in docs/artifact.md.
"""

from typing import ClassVar

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph.graph import RANKRT
from rankrt_export.targets.cpu import CpuOperators


class KernelOperators(CpuOperators):
    """The operators of `CpuOperators`, with kernels of rankrt's where there are some."""

    _attention: ClassVar = "Attention"

    def positions(self, table: Float32Array, name: str) -> ir.Value:
        """Return the table's row for each token's place in its row, (n_tokens, n_features)."""
        places = self._graph.op("Places", self._row_offsets, domain=RANKRT)
        return self._graph.op("Gather", self._graph.array(name, table), places)

    def attention(
        self, queries: ir.Value, hidden: ir.Value, layers: tuple[str, str, str], *, n_heads: int, first_only: bool
    ) -> ir.Value:
        """Attend in one operator; the layers' biases are part of their products."""
        states = [self._graph.linear(x, name) for x, name in zip((queries, hidden, hidden), layers, strict=True)]
        shape = {"n_heads": n_heads, "first_only": int(first_only)}
        return self._graph.op(self._attention, *states, self._row_offsets, domain=RANKRT, **shape)

    def add_norm(self, x: ir.Value, y: ir.Value, norm: str, epsilon: float) -> ir.Value:
        """Normalise x + y in one operator."""
        vectors = [self._graph.vector(f"{norm}.{part}") for part in ("weight", "bias")]
        return self._graph.op("AddNorm", x, y, *vectors, domain=RANKRT, epsilon=epsilon)


class FloatKernelOperators(KernelOperators):
    """The same, all in float32."""

    _attention: ClassVar = "FloatAttention"
