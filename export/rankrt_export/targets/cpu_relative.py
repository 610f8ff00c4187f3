"""The CPU target of encoders whose attention adds products with vectors of distances (DeBERTa).

A Loop takes the rows one at a time into attention, as for other encoders. The products are made for each distance in a
row, (n, 2 * n - 1). Row i of the scores is n of their row i, which begin one place earlier than those of row i - 1. If
that many more are left out at the start and rows are cut one place shorter, these places are the first n of each row.
So it takes two slices, and no look-up for each pair of tokens.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from rankrt_export.graph.graph import MICROSOFT, DistanceTables, Graph
from rankrt_export.targets.cpu import CpuOperators
from rankrt_export.targets.each_row import Row, each_row


class RelativeCpuOperators(CpuOperators):
    """Operators of encoders with distances between tokens and norms after their layers."""

    def relative_attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, tables: DistanceTables, *, scale: float, first_only: bool
    ) -> ir.Value:
        """Attend row by row; what distances add to scores is handed over as a mask would be."""
        graph, zero, n_heads = self._graph, self._graph.ints(0), tables.n_heads
        heads = {"num_heads": n_heads, "scale": scale}

        def of_row(tape: Tape, row: Row) -> ir.Value:
            first_or_all = (row.index, row.next_index) if first_only else (row.start, row.stop)
            places = (first_or_all, (row.start, row.stop), (row.start, row.stop))
            parts = [
                tape.op("Unsqueeze", [tape.op("Slice", [x, *place, zero]), zero])
                for x, place in zip((query, key, value), places, strict=True)
            ]
            distances = _Distances(graph, tape, tables, tape.op("Sub", [row.stop, row.start]))
            added = distances.of_first(*parts[:2]) if first_only else distances.of_all(*parts[:2])
            attended = tape.op("MultiHeadAttention", [*parts, None, None, added], heads, domain=MICROSOFT)
            return tape.op("Squeeze", [attended, zero])

        return each_row(graph, self._n_rows, self._offsets, of_row)


class _Distances:
    """What distances add to the scores of one row, (1, n_heads, n_queries, n_tokens)."""

    def __init__(self, graph: Graph, tape: Tape, tables: DistanceTables, n_tokens: ir.Value) -> None:
        self._graph = graph
        self._tape = tape
        self._tables = tables
        self._n_tokens = n_tokens

    def of_all(self, query: ir.Value, key: ir.Value) -> ir.Value:
        """Return it for all tokens of the row; query and key are (1, n_tokens, n_heads * size)."""
        tables, parts = self._tables, []
        longest, one = (len(tables.buckets) + 1) // 2, self._graph.ints(1)
        start = self._tape.op("Sub", [self._graph.ints(longest), self._n_tokens])
        stop = self._tape.op("Sub", [self._tape.op("Add", [self._graph.ints(longest), self._n_tokens]), one])
        # Of a query all keys in their order, of which the first has the largest distance; of a key all queries.
        if tables.keys is not None:
            products = self._products(query, "keys", self._places("falling", start, stop))
            parts.append(self._moved(products))
        if tables.queries is not None:
            products = self._products(key, "queries", self._places("rising", start, stop))
            parts.append(self._tape.op("Transpose", [self._moved(products)], {"perm": [0, 1, 3, 2]}))
        return self._sum(parts)

    def of_first(self, query: ir.Value, key: ir.Value) -> ir.Value:
        """Return it for the first token alone, (1, n_heads, 1, n_tokens); `query` is (1, 1, n_heads * size)."""
        tables, parts = self._tables, []
        start = self._graph.ints((len(tables.buckets) - 1) // 2)
        places = self._places("falling", start, self._tape.op("Add", [start, self._n_tokens]))
        if tables.keys is not None:
            parts.append(self._products(query, "keys", places))
        if tables.queries is not None:
            both = self._tape.op("Mul", [self._by_head(key), self._vectors("queries", places)])
            total = self._tape.op("ReduceSum", [both, self._graph.ints(3)], {"keepdims": 0})
            parts.append(self._tape.op("Unsqueeze", [total, self._graph.ints(2)]))
        return self._sum(parts)

    def _places(self, order: str, start: ir.Value, stop: ir.Value) -> ir.Value:
        """Return the places in the tables of some of all distances, from the largest to the smallest if falling."""
        buckets = self._tables.buckets if order == "rising" else self._tables.buckets[::-1]
        stored = self._graph.constant(f"distances.{order}", np.ascontiguousarray(buckets))
        return self._tape.op("Slice", [stored, start, stop, self._graph.ints(0)])

    def _products(self, x: ir.Value, table: str, places: ir.Value) -> ir.Value:
        """Return the products of tokens with vectors, (1, n_heads, n_tokens, n_places)."""
        inputs = [self._by_head(x), self._vectors(table, places)]
        return self._tape.op("FusedMatMul", inputs, {"transB": 1}, domain=MICROSOFT)

    def _vectors(self, table: str, places: ir.Value) -> ir.Value:
        """Return vectors of distances, (n_heads, n_places, size)."""
        content = self._tables.keys if table == "keys" else self._tables.queries
        assert content is not None, "it is asked for only where there is one"
        stored = self._graph.array(f"{self._tables.name}.{table}", content)
        return self._tape.op("Gather", [stored, places], {"axis": 1})

    def _by_head(self, x: ir.Value) -> ir.Value:
        """Return states of a row, (1, n_tokens, n_heads * size), as (1, n_heads, n_tokens, size)."""
        apart = self._tape.op("Reshape", [x, self._graph.ints(0, 0, self._tables.n_heads, -1)])
        return self._tape.op("Transpose", [apart], {"perm": [0, 2, 1, 3]})

    def _moved(self, products: ir.Value) -> ir.Value:
        """Return of products with all distances, (1, n_heads, n, 2 * n - 1), those of each pair, (1, n_heads, n, n).

        In row i the first is at n - 1 - i. Without the first n - 1 of all, rows of 2 * n - 2 begin there.
        """
        ints, tape = self._graph.ints, self._tape
        width = tape.op("Sub", [tape.op("Add", [self._n_tokens, self._n_tokens]), ints(2)])
        start = tape.op("Sub", [self._n_tokens, ints(1)])
        flat = tape.op("Reshape", [products, ints(0, 0, -1)])
        rest = tape.op("Slice", [flat, start, ints(-1), ints(2)])
        shape = tape.op("Concat", [ints(0, 0), self._n_tokens, width], {"axis": 0})
        return tape.op("Slice", [tape.op("Reshape", [rest, shape]), ints(0), self._n_tokens, ints(3)])

    def _sum(self, parts: list[ir.Value]) -> ir.Value:
        return parts[0] if len(parts) == 1 else self._tape.op("Add", parts)
