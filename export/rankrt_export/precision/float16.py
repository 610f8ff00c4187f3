"""Weights stored in half precision and computed in single: half the download, for hosts that compute in fp32.

ONNX Runtime folds the casts of the matrices when it loads the graph; rows of a table are cast as they are looked up.
"""

import numpy as np
import onnx_ir as ir

from rankrt_export.graph import Graph
from rankrt_export.precision.float32 import transposed


class Float16:
    """Half precision in storage."""

    def matmul(self, graph: Graph, x: ir.Value, weight: str) -> ir.Value:
        """Return x @ W.T, computed in float32."""
        stored = transposed(graph, weight, "layers.fp16.data", np.float16)
        return graph.op("MatMul", x, graph.op("Cast", stored, to=ir.DataType.FLOAT))

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, as float32."""
        rows = graph.external(
            "embeddings.fp16.data",
            f"{table}.float16",
            np.float16,
            graph.weights.shape(table),
            lambda: graph.weights.blocks(table),
        )
        return graph.op("Cast", graph.op("Gather", rows, ids), to=ir.DataType.FLOAT)
