"""The CUDA target of encoders with rotary positions, some of whose layers see a window around each token.

A layer that sees the whole row attends as in `cuda`. One with a window takes the concatenated rows in blocks of 128
tokens, wherever rows begin and end. Each block sees itself and `reach` tokens on either side. A mask hides tokens that
are out of reach or of another row. So time and memory grow with the number of tokens. MultiHeadAttention takes a mask
in memory-efficient attention (onnxruntime's contrib_ops/cuda/bert/multihead_attention.cc), not in flash attention.

As in `cuda`, the operators are written as they are to run, and none computes a shape: the host says how many blocks
there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rankrt.backends.batch import BLOCK_TOKENS
from rankrt_export.graph.graph import FLOAT, HALF, MICROSOFT, Graph, RotaryTables
from rankrt_export.targets.varlen_rows import VarlenRows

# What hides a place. It is finite in half precision too: after the last token a block sees nothing, and would give NaN.
_HIDDEN: Mapping[ir.DataType, npt.NDArray[Any]] = {FLOAT: np.array(-1e30, np.float32), HALF: np.array(-3e4, np.float16)}
_SEEN: Mapping[ir.DataType, npt.NDArray[Any]] = {FLOAT: np.array(0, np.float32), HALF: np.array(0, np.float16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """The blocks of a run.

    queries (n_blocks, 128) the tokens that attend, by place in the run; the last block ends with some that are dropped
    seen    (n_blocks, n_seen) the tokens that they may see
    mask    (n_blocks, 1, 128, n_seen) what is added to scores
    tokens  (n_tokens,) the place of each token in the run
    """

    queries: ir.Value
    seen: ir.Value
    mask: ir.Value
    tokens: ir.Value


class RotaryCudaOperators(VarlenRows):
    """Operators of ONNX Runtime's CUDA provider."""

    def __init__(self, graph: Graph, n_heads: int, head_size: int) -> None:
        super().__init__(graph)
        self._n_heads = n_heads
        self._head_size = head_size
        self._places = graph.op("Unsqueeze", graph.op("Cast", self._positions, to=ir.DataType.INT64), graph.ints(1))
        self._windows: dict[int, _Window] = {}

    def means(self, hidden: ir.Value) -> ir.Value:
        """Return the mean of each row's tokens, (n_rows, n_features), of float32.

        An attention whose queries and keys are zeros weighs all tokens of a row alike.
        """
        graph = self._graph
        states = graph.as_states(hidden)
        zeros = graph.op("Mul", states, graph.constant("seen", _SEEN[graph.states]))
        return graph.as_float32(self.first_tokens(self._packed(zeros, zeros, states)))

    def rotated(self, x: ir.Value, tables: RotaryTables) -> ir.Value:
        """Turn the features of each head by the token's position."""
        graph, one = self._graph, self._graph.ints(1)
        stored = tables.stored(graph, graph.states)
        token = graph.op("Unsqueeze", x, one)
        turned = graph.op("RotaryEmbedding", token, self._places, *stored, domain=MICROSOFT, num_heads=self._n_heads)
        return graph.op("Squeeze", turned, one)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, reach: int | None, first_only: bool
    ) -> ir.Value:
        """Attend from every token; only the first ones are returned if `first_only`."""
        attended = self._packed(query, key, value) if reach is None else self._in_blocks(query, key, value, reach)
        return self.first_tokens(attended) if first_only else attended

    def _packed(self, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        places = (self._token_offset, self._row_offsets)
        return self._graph.op(
            "PackedMultiHeadAttention", query, key, value, None, *places, domain=MICROSOFT, num_heads=self._n_heads
        )

    def _in_blocks(self, query: ir.Value, key: ir.Value, value: ir.Value, reach: int) -> ir.Value:
        graph = self._graph
        window = self._window(reach)
        places = (window.queries, window.seen, window.seen)
        parts = [graph.op("Gather", x, place) for x, place in zip((query, key, value), places, strict=True)]
        attended = graph.op(
            "MultiHeadAttention", *parts, None, None, window.mask, domain=MICROSOFT, num_heads=self._n_heads
        )
        flat = graph.op("Reshape", attended, graph.ints(-1, self._n_heads * self._head_size))
        return graph.op("Gather", flat, window.tokens)

    def _window(self, reach: int) -> _Window:
        """Return the blocks of a run, which are the same in every layer of that reach."""
        if reach not in self._windows:
            self._windows[reach] = self._new_window(reach)
        return self._windows[reach]

    def _new_window(self, reach: int) -> _Window:
        graph, ints = self._graph, self._graph.ints
        rows, blocks = (
            graph.input(name, ir.DataType.INT32, [size])
            for name, size in (("token_rows", "n_tokens"), ("blocks", "n_blocks"))
        )
        own = np.arange(BLOCK_TOKENS, dtype=np.int32)
        around = np.arange(-reach, BLOCK_TOKENS + reach, dtype=np.int32)
        is_near = np.abs(own[:, None] - around) <= reach
        zero, step = (graph.constant(f"int32({n})", np.array(n, np.int32)) for n in (0, BLOCK_TOKENS))
        one = graph.constant("int32(1)", np.array(1, np.int32))
        last = graph.op("Sub", graph.op("Slice", self._row_offsets, ints(-1), ints(2**62)), one)
        first = graph.op("Unsqueeze", graph.op("Mul", blocks, step), ints(1))
        queries = graph.op("Min", graph.op("Add", first, graph.constant("block.own", own)), last)
        unbounded = graph.op("Add", first, graph.constant("block.around", around))
        seen = graph.op("Max", graph.op("Min", unbounded, last), zero)
        is_there = graph.op("Unsqueeze", graph.op("Equal", seen, unbounded), ints(1))
        query_rows = graph.op("Unsqueeze", graph.op("Gather", rows, queries), ints(2))
        seen_rows = graph.op("Unsqueeze", graph.op("Gather", rows, seen), ints(1))
        is_own = graph.op("And", graph.op("Equal", query_rows, seen_rows), is_there)
        is_seen = graph.op("And", is_own, graph.constant("block.is_near", is_near))
        values = (graph.constant("seen", _SEEN[graph.states]), graph.constant("hidden", _HIDDEN[graph.states]))
        return _Window(
            queries=queries,
            seen=seen,
            mask=graph.op("Unsqueeze", graph.op("Where", is_seen, *values), ints(1)),
            tokens=graph.op("Add", graph.op("Gather", self._row_offsets, rows), self._positions),
        )
