"""The CPU target of encoders with rotary positions, some of whose layers see a window around each token.

A Loop takes the rows one at a time into attention, as for other encoders. A layer that sees `reach` tokens in either
direction cuts a row into blocks of 2 * reach tokens, each of which sees itself and half a block on either side. So time
and memory grow with the row's length, not with its square. A row of up to two blocks is one block that sees itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from rankrt_export.graph.graph import MICROSOFT, Graph, RotaryTables
from rankrt_export.targets.each_row import Row, each_row
from rankrt_export.targets.packed_rows import PackedRows
from rankrt_export.targets.plain import HIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """The blocks of one row, as places in its run.

    queries (n_blocks, size) of the tokens that attend; the last block ends with some that are dropped
    seen    (n_blocks, n_seen) of the tokens that they may see, all within the row
    mask    (n_blocks, 1, size, n_seen) what is added to scores: 0, or what hides a token out of reach
    """

    queries: ir.Value
    seen: ir.Value
    mask: ir.Value


class RotaryCpuOperators(PackedRows):
    """Operators of encoders with rotary positions."""

    def __init__(self, graph: Graph, n_heads: int, head_size: int) -> None:
        super().__init__(graph)
        self._heads = {"num_heads": n_heads}
        self._places: ir.Value | None = None

    def rotated(self, x: ir.Value, tables: RotaryTables) -> ir.Value:
        """Turn the features of each head by the token's position."""
        graph, one = self._graph, self._graph.ints(1)
        if self._places is None:
            # Rows are joined in float32, in which whole numbers of this size are exact.
            counted = np.arange(len(tables.cosines), dtype=np.float32)[:, None]
            self._places = graph.op("Cast", self.positions(counted, "places"), to=ir.DataType.INT64)
        # Each token is a sequence of its own: a sequence may not be longer than the tables, but a run may.
        token = graph.op("Unsqueeze", x, one)
        places = (self._places, *tables.stored(graph))
        return graph.op("Squeeze", graph.op("RotaryEmbedding", token, *places, domain=MICROSOFT, **self._heads), one)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, reach: int | None, first_only: bool
    ) -> ir.Value:
        """Attend row by row; by flash attention, which takes no mask, where all that is handed to it is seen."""
        graph, zero = self._graph, self._graph.ints(0)

        def of_row(tape: Tape, row: Row) -> ir.Value:
            if reach is not None and not first_only:
                return self._in_blocks(tape, row, (query, key, value), reach)
            stop = row.stop
            if reach is not None:
                stop = tape.op("Min", [row.stop, tape.op("Add", [row.start, graph.ints(reach + 1)])])
            next_ = tape.op("Add", [row.start, graph.ints(1)])
            first_or_all = (row.start, next_) if first_only else (row.start, stop)
            places = (first_or_all, (row.start, stop), (row.start, stop))
            parts = [
                tape.op("Unsqueeze", [tape.op("Slice", [x, *place, zero]), zero])
                for x, place in zip((query, key, value), places, strict=True)
            ]
            attended = tape.op("MultiHeadAttention", parts, self._heads, domain=MICROSOFT)
            return tape.op("Squeeze", [attended, zero])

        return each_row(graph, self._n_rows, self._offsets, of_row)

    def means(self, hidden: ir.Value) -> ir.Value:
        """Return the mean of each row's tokens, (n_rows, n_features)."""
        zero = self._graph.ints(0)

        def of_row(tape: Tape, row: Row) -> ir.Value:
            return tape.op("ReduceMean", [tape.op("Slice", [hidden, row.start, row.stop, zero]), zero])

        return each_row(self._graph, self._n_rows, self._offsets, of_row)

    def _in_blocks(self, tape: Tape, row: Row, states: Sequence[ir.Value], reach: int) -> ir.Value:
        """Return what a row's tokens attend to within their reach, (row's n_tokens, n_features)."""
        zero, blocks = self._graph.ints(0), self._blocks(tape, row, reach)
        places = (blocks.queries, blocks.seen, blocks.seen)
        parts = [tape.op("Gather", [x, place]) for x, place in zip(states, places, strict=True)]
        attended = tape.op("MultiHeadAttention", [*parts, None, None, blocks.mask], self._heads, domain=MICROSOFT)
        flat = tape.op("Flatten", [attended], {"axis": 2})
        return tape.op("Slice", [flat, zero, tape.op("Sub", [row.stop, row.start]), zero])

    def _blocks(self, tape: Tape, row: Row, reach: int) -> _Blocks:
        """Cut a row into blocks. What follows the last token and what precedes the first is out of reach."""
        graph, ints, zero, one = self._graph, self._graph.ints, self._graph.ints(0), self._graph.ints(1)
        n_tokens = tape.op("Sub", [row.stop, row.start])
        last = tape.op("Sub", [n_tokens, one])
        is_one = tape.op("LessOrEqual", [n_tokens, ints(4 * reach)])
        size, n_seen = (tape.op("Where", [is_one, n_tokens, ints(n * reach)]) for n in (2, 4))
        n_before = tape.op("Where", [is_one, zero, ints(reach)])

        def counted(stop: ir.Value) -> ir.Value:
            return tape.op("Range", [graph.int_scalar(0), tape.op("Squeeze", [stop, zero]), graph.int_scalar(1)])

        n_blocks = tape.op("Add", [tape.op("Div", [last, size]), one])
        first = tape.op("Unsqueeze", [tape.op("Mul", [counted(n_blocks), size]), one])
        queries = tape.op("Add", [first, counted(size)])
        seen = tape.op("Add", [tape.op("Sub", [first, n_before]), counted(n_seen)])
        within = tape.op("Max", [tape.op("Min", [seen, last]), zero])
        is_there = tape.op("Unsqueeze", [tape.op("Equal", [seen, within]), one])
        distances = tape.op("Sub", [tape.op("Unsqueeze", [queries, ints(2)]), tape.op("Unsqueeze", [seen, one])])
        is_near = tape.op("LessOrEqual", [tape.op("Abs", [distances]), ints(reach)])
        is_seen = tape.op("And", [is_near, is_there])
        added = tape.op("Where", [is_seen, graph.scalar(np.float32(0)), graph.scalar(HIDDEN)])
        return _Blocks(
            queries=tape.op("Add", [tape.op("Min", [queries, last]), row.start]),
            seen=tape.op("Add", [within, row.start]),
            mask=tape.op("Unsqueeze", [added, one]),
        )
