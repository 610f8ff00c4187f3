"""Weights stored in half precision and computed in single: half the download, for hosts that compute in fp32.

ONNX Runtime folds the casts of the matrices when it loads the graph; rows of a table are cast as they are looked up.
Only weights have to fit into half precision, which is refused where they do not: activations may be of any size.
"""

import numpy as np
import onnx_ir as ir

from rankrt_export.graph.graph import FLOAT, Graph
from rankrt_export.precision.float32 import gemm, store
from rankrt_export.precision.methods import FixedMethod

LAYERS_DATA, EMBEDDINGS_DATA = "layers.fp16.data", "embeddings.fp16.data"


class Float16Storage:
    """Half precision in storage."""

    states = FLOAT

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias, computed in float32."""
        half = store(graph, weight, LAYERS_DATA, np.float16)
        return gemm(graph, x, graph.op("Cast", half, to=ir.DataType.FLOAT), bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, as float32."""
        half = store(graph, table, EMBEDDINGS_DATA, np.float16)
        return graph.op("Cast", graph.op("Gather", half, ids), to=ir.DataType.FLOAT)


METHODS = (FixedMethod(target="cpu", precision="fp16", arithmetic=Float16Storage()),)
