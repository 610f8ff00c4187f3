"""Weights as they were trained, in single precision. Those of layers are stored as panels, once for all graphs.

A graph for rankrt's kernels reads the panels as they are. All others put the panels of a layer side by side in one
Concat, which ONNX Runtime folds when it loads the graph. So 568 M parameters, not prepared, take 2.5 s of one core to
load, where rows took 1.1 s. The memory peaks at 1.26 GB, and did at 1.20 GB. Transpose and Reshape in place of Concat
copy twice: 3.1 s and 2.8 GB. The products are the same to the bit.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.errors import RangeError
from rankrt_export.graph.graph import FLOAT, MICROSOFT, RANKRT, Graph
from rankrt_export.precision.methods import FixedMethod
from rankrt_export.precision.panels import PANEL, n_panels, panels_of, without_filling

LAYERS_DATA = "layers.fp32.data"
_Stored = TypeVar("_Stored")

# Returns x @ W.T + bias, if there is one, for W in some form.
Multiply: TypeAlias = Callable[[Graph, ir.Value, ir.Value, ir.Value | None], ir.Value]


def gemm(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply (n_tokens, n_in) by (n_out, n_in) in one node: 0.3 to 1.3 % faster on a CPU than MatMul and Add."""
    return graph.op("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)


def gemm_columns(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply (n_tokens, n_in) by (n_in, n_out) in one node."""
    return graph.op("Gemm", x, weight, *([] if bias is None else [bias]))


def matmul(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply states of any shape by (n_out, n_in). ONNX Runtime transposes the weight at loading."""
    return matmul_columns(graph, x, graph.op("Transpose", weight, perm=[1, 0]), bias)


def matmul_columns(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply states of any shape, which Gemm does not take, by (n_in, n_out)."""
    product = graph.op("MatMul", x, weight)
    return product if bias is None else graph.op("Add", product, bias)


def fused_matmul(graph: Graph, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Multiply states of any shape by a weight as it is stored, in ONNX Runtime's own operator."""
    product = graph.op("FusedMatMul", x, weight, domain=MICROSOFT, transB=1)
    return product if bias is None else graph.op("Add", product, bias)


class Float32Rows:
    """Single precision, with the weights of layers as the checkpoint has them: for heads and for other programs.

    `matrices` is the data file for the weights of linear layers.
    """

    states = FLOAT

    def __init__(self, matrices: str = LAYERS_DATA, multiply: Multiply = gemm) -> None:
        self.matrices = matrices
        self._multiply = multiply

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        return self._multiply(graph, x, self.weights(graph, weight), bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table."""
        return graph.op("Gather", store(graph, table, "embeddings.fp32.data", np.float32), ids)

    def weights(self, graph: Graph, weight: str) -> ir.Value:
        """Return a layer's weights, (n_out, n_in)."""
        return store(graph, weight, self.matrices, np.float32)


class Float32(Float32Rows):
    """Single precision, with the weights of layers as panels, which are put side by side."""

    def __init__(self, matrices: str = LAYERS_DATA, multiply: Multiply = gemm_columns) -> None:
        super().__init__(matrices, multiply)

    def weights(self, graph: Graph, weight: str) -> ir.Value:
        """Return a layer's weights, (n_in, n_out)."""
        n_out, _ = graph.weights.shape(weight)
        *full, last = store_panels(graph, weight, self.matrices, graph.parts)
        last = without_filling(graph, last, axis=1, n=n_out - PANEL * len(full), n_filled=PANEL)
        return graph.op("Concat", *full, last, axis=1) if full else last


class Float32Kernels(Float32Rows):
    """Single precision by rankrt's own operator, which reads panels: FloatLinear, which docs/artifact.md specifies.

    It adds the bias, and applies a GELU that follows: see `Graph.gelu`.
    """

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        panels = store_panels(graph, weight, self.matrices, graph.external)
        numbers = {"n_outputs": graph.weights.shape(weight)[0], "gelu": 0}
        return graph.op("FloatLinear", x, panels, *([] if bias is None else [bias]), domain=RANKRT, **numbers)


def store_panels(graph: Graph, weight: str, file: str, as_stored: Callable[..., _Stored]) -> _Stored:
    """Return a layer's weights in a data file, (n_panels, n_in, 32): that of input i, output 32 p + c is at [p, i, c].

    `as_stored` is `graph.external`, or `graph.parts` for the panels one by one.
    """
    n_out, n_in = graph.weights.shape(weight)

    def blocks() -> Iterator[Float32Array]:
        return (panel.T for panel in panels_of(graph.weights.blocks(weight)))

    return as_stored(file, f"{weight}.panels", np.float32, (n_panels(n_out), n_in, PANEL), blocks)


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
    FixedMethod(target="cpu", precision="fp32", arithmetic=Float32(), of_kernels=Float32Kernels()),
    # The states of a causal model are a matrix of rows on a GPU, which Gemm does not take.
    FixedMethod(target="cuda", precision="fp32", arithmetic=Float32(), of_matrix=Float32(multiply=matmul_columns)),
    FixedMethod(target="tensorrt", precision="fp32", arithmetic=Float32(multiply=matmul_columns)),
)
