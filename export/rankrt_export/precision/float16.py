"""Half precision throughout, for GPUs: weights, products and states. The weights have the bytes of `Float16Storage`.

Tensor cores multiply half precision with sums in single. Targets keep the delicate parts in fp32: sums of squares in
norms, and softmax. The head is fp32 as everywhere.
"""

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import HALF, Graph
from rankrt_export.precision.float16_storage import EMBEDDINGS_DATA, LAYERS_DATA
from rankrt_export.precision.float32 import Multiply, fused_matmul, gemm, matmul, store
from rankrt_export.precision.methods import FixedMethod


class Float16:
    """Half precision in storage and in computation. `matrices` is the data file for the weights of linear layers."""

    states = HALF

    def __init__(self, matrices: str = LAYERS_DATA, multiply: Multiply = gemm) -> None:
        self._matrices = matrices
        self._multiply = multiply

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias, all in half precision."""
        return self._multiply(graph, x, store(graph, weight, self._matrices, np.float16), bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, as half precision."""
        return graph.op("Gather", store(graph, table, EMBEDDINGS_DATA, np.float16), ids)


METHODS = (
    FixedMethod(target="cuda", precision="fp16", arithmetic=Float16(), of_matrix=Float16(multiply=fused_matmul)),
    FixedMethod(target="tensorrt", precision="fp16", arithmetic=Float16(multiply=matmul)),
)
