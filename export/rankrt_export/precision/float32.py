"""Weights as they were trained: the data files hold the checkpoint's own bytes."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from rankrt_export.errors import RangeError
from rankrt_export.graph.graph import FLOAT, MICROSOFT, Graph
from rankrt_export.precision.methods import FixedMethod

# Returns x @ W.T + bias, if there is one, for W as it is stored, (n_out, n_in).
Multiply: TypeAlias = Callable[[Graph, ir.Value, ir.Value, ir.Value | None], ir.Value]


def gemm(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply (n_tokens, n_in) in one node: 0.3 to 1.3 % faster on a CPU than MatMul and Add."""
    return graph.op("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)


def matmul(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply states of any shape, which Gemm does not take. ONNX Runtime transposes the weight at loading."""
    product = graph.op("MatMul", x, graph.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else graph.op("Add", product, bias)


def fused_matmul(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply states of any shape by a weight as it is stored, in ONNX Runtime's own operator."""
    product = graph.op("FusedMatMul", x, weight, domain=MICROSOFT, transB=1)
    return product if bias is None else graph.op("Add", product, bias)


class Float32:
    """Single precision. `matrices` is the data file for the weights of linear layers."""

    states = FLOAT

    def __init__(self, matrices: str = "layers.fp32.data", multiply: Multiply = gemm) -> None:
        self._matrices = matrices
        self._multiply = multiply

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        return self._multiply(graph, x, store(graph, weight, self._matrices, np.float32), bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table."""
        return graph.op("Gather", store(graph, table, "embeddings.fp32.data", np.float32), ids)


def store(graph: Graph, weight: str, file: str, dtype: type[np.floating[Any]]) -> ir.Value:
    """Return a weight in a data file, in another type if that is asked for.

    Raises RangeError where a weight has a value that the type has not, and would become infinite.
    """
    key = f"{weight}.{np.dtype(dtype).name}"
    return graph.external(file, key, dtype, graph.weights.shape(weight), lambda: _blocks_within(graph, weight, dtype))


def _blocks_within(graph: Graph, weight: str, dtype: type[np.floating[Any]]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the blocks of a weight, whose values the type has."""
    limit = float(np.finfo(dtype).max)
    for block in graph.weights.blocks(weight):
        if dtype is np.float16 and not (largest := float(np.abs(block).max(initial=0))) <= limit:
            raise RangeError(
                f"{weight} has a value of {largest:.4g}, and half precision ends at {limit:g}: export this model"
                " without fp16"
            )
        yield block


METHODS = (
    FixedMethod(target="cpu", precision="fp32", arithmetic=Float32()),
    # The states of a causal model are a matrix of rows on a GPU, which Gemm does not take.
    FixedMethod(target="cuda", precision="fp32", arithmetic=Float32(), of_matrix=Float32(multiply=fused_matmul)),
    FixedMethod(target="tensorrt", precision="fp32", arithmetic=Float32(multiply=matmul)),
)
