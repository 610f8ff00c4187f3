"""The targets for GPUs of encoders whose attention adds products with vectors of distances (DeBERTa).

Rows are a matrix, as in `tensorrt`, and operators are plain. The products are made for each vector, and looked up for
each pair of tokens. No operator computes a shape: ONNX Runtime would put it on the CPU, where none may be on CUDA.
"""

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph.graph import DistanceTables, Graph
from rankrt_export.targets import plain
from rankrt_export.targets.tensorrt import TensorRtOperators


class PaddedRelativeOperators(TensorRtOperators):
    """Operators of encoders with distances between tokens and norms after their layers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, plain.counted)
        self._vectors: ir.Value | None = None

    def relative_attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, tables: DistanceTables, *, scale: float, first_only: bool
    ) -> ir.Value:
        """Attend to all tokens except padding; what distances add to scores is float32."""
        graph, added = self._graph, self._mask
        size = next(table.shape[2] for table in (tables.keys, tables.queries) if table is not None)
        vectors = self._vectors = self._vectors or self._vectors_of_pairs(tables)
        if first_only:
            query = graph.op("Unsqueeze", query, graph.ints(1))
            vectors = graph.op("Slice", vectors, graph.ints(0), graph.ints(1), graph.ints(2))
        if tables.keys is not None:
            products = self._products(query, f"{tables.name}.keys", tables.keys)
            found = graph.op("GatherElements", products, vectors, axis=3)
            added = graph.op("Add", graph.as_float32(found), added)
        if tables.queries is not None:
            products = self._products(key, f"{tables.name}.queries", tables.queries)
            of_keys = graph.op("Transpose", vectors, perm=[0, 1, 3, 2])
            found = graph.op("Transpose", graph.op("GatherElements", products, of_keys, axis=3), perm=[0, 1, 3, 2])
            added = graph.op("Add", graph.as_float32(found), added)
        attended = plain.attention(graph, query, key, value, added, size, scale=scale)
        return graph.op("Squeeze", attended, graph.ints(1)) if first_only else attended

    def _products(self, x: ir.Value, name: str, table: Float32Array) -> ir.Value:
        """Return the products of tokens with all vectors, (n_rows, n_heads, n_tokens, n_vectors)."""
        graph = self._graph
        columns = graph.op("Transpose", graph.array(name, table, graph.states), perm=[0, 2, 1])
        return graph.op("MatMul", plain.by_head(graph, x, table.shape[2]), columns)

    def _vectors_of_pairs(self, tables: DistanceTables) -> ir.Value:
        """Return the place of each pair's vector in the tables, (n_rows, n_heads, longest, longest)."""
        graph, places = self._graph, self._places
        apart = graph.op(
            "Sub", graph.op("Unsqueeze", places, graph.ints(2)), graph.op("Unsqueeze", places, graph.ints(1))
        )
        last = (len(tables.buckets) - 1) // 2
        moved = graph.op("Add", apart, graph.constant(f"int32({last})", np.array(last, np.int32)))
        stored = graph.constant("buckets", tables.buckets.astype(np.int32))
        of_pairs = graph.op("Unsqueeze", graph.op("Gather", stored, moved), graph.ints(1))
        of_heads = graph.constant("of_heads", np.zeros((1, tables.n_heads, 1, 1), np.int32))
        return graph.op("Add", of_pairs, of_heads)
