"""Weights as they were trained."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph import Graph
from rankrt_export.weights import read


class Float32:
    """Single precision. `matrices` is the data file for the weights of linear layers."""

    def __init__(self, matrices: str = "layers.fp32.data") -> None:
        self._matrices = matrices

    def matmul(self, graph: Graph, x: ir.Value, weight: str) -> ir.Value:
        """Return x @ W.T."""
        return graph.op("MatMul", x, transposed(graph, weight, self._matrices, np.float32))

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table."""
        rows = graph.external(
            "embeddings.fp32.data", table, np.float32, graph.weights.shape(table), lambda: graph.weights.blocks(table)
        )
        return graph.op("Gather", rows, ids)


def transposed(graph: Graph, weight: str, file: str, dtype: type[np.floating]) -> ir.Value:
    """Return a weight (n_out, n_in) as the second operand of a MatMul, (n_in, n_out)."""
    n_out, n_in = graph.weights.shape(weight)

    def blocks() -> Iterable[Float32Array]:
        return [read(graph.weights, weight).T]

    return graph.external(file, f"{weight}.T.{np.dtype(dtype).name}", dtype, (n_in, n_out), blocks)
