"""The CPU target of causal models: rows concatenated, attention row by row after a shared prefix.

As for the encoders, products, norms and activations run over all rows at once. A Loop takes one row at a time into
GroupQueryAttention. Its causal flash kernel needs no mask, and takes the keys and values before the row's own as they
are. So there is no padding. A row's scores are bit-identical in every run, and whether its prefix was computed with it
or before it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir
from onnx_ir.tape import Tape

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Layout
from rankrt_export.graph.graph import MICROSOFT, Graph, RotaryTables
from rankrt_export.targets import fused
from rankrt_export.targets.each_row import Row, each_row
from rankrt_export.targets.segment import SegmentShape

# GroupQueryAttention takes heads of a multiple of this size. Others are padded with zeros, which add nothing.
_HEAD_STEP = 8
# Appends a node with one output.
Op: TypeAlias = Callable[..., ir.Value]


class CausalCpuOperators:
    """Operators for the layout "causal", with the inputs of docs/artifact.md."""

    layout: Layout = "causal"
    n_axes = 1

    def __init__(self, graph: Graph, shape: SegmentShape) -> None:
        self._graph = graph
        self._shape = shape
        self._filled_size = -(-shape.head_size // _HEAD_STEP) * _HEAD_STEP
        self.states = (
            graph.input("input_ids", ir.DataType.INT32, ["n_tokens"])
            if shape.is_first
            else graph.input("states", ir.DataType.FLOAT, ["n_tokens", shape.n_features])
        )
        offsets = graph.input("row_offsets", ir.DataType.INT32, ["n_offsets"])
        before = graph.input("tokens_before", ir.DataType.INT32, ["n_pieces", 2])
        positions = graph.input("positions", ir.DataType.INT64, ["n_tokens"])
        prefix_shape: list[str | int] = [shape.n_layers, 2, shape.n_kv_heads, "n_prefix", self._filled_size]
        self._prefix = graph.input("prefix", ir.DataType.FLOAT, prefix_shape)
        self._last_tokens = graph.input("last_layer_tokens", ir.DataType.INT64, ["n_last"])
        last_offsets = graph.input("last_layer_offsets", ir.DataType.INT32, ["n_offsets"])
        self._n_kept = graph.input("n_kept", ir.DataType.INT64, [1])
        self._offsets, before, self._last_offsets = (
            graph.op("Cast", x, to=ir.DataType.INT64) for x in (offsets, before, last_offsets)
        )
        self._before = [graph.op("Gather", before, graph.int_scalar(i), axis=1) for i in (0, 1)]
        self._n_rows = graph.op("Sub", graph.op("Size", self._offsets), graph.int_scalar(1))
        self._positions, self._last_positions = positions, graph.op("Gather", positions, self._last_tokens)
        self._kept: list[ir.Value] = []

    def last_layer_queries(self, hidden: ir.Value) -> ir.Value:
        """Return the states of the outputs, (n_outputs, n_features): no others are needed."""
        return self.last_layer_outputs(hidden)

    def last_layer_outputs(self, x: ir.Value) -> ir.Value:
        """Return the states of the last layer's outputs, (n_outputs, n_features)."""
        return self._graph.op("Gather", x, self._last_tokens, axis=0)

    def rotated(self, x: ir.Value, tables: RotaryTables, *, n_heads: int, is_last_layer: bool) -> ir.Value:
        """Rotate the features of each head by the token's position; `x` has all tokens, or the outputs."""
        graph, one = self._graph, self._graph.ints(1)
        positions = self._last_positions if is_last_layer else self._positions
        # Each token is a sequence of its own, because a run may be longer than the tables and a sequence may not.
        tokens = [graph.op("Unsqueeze", value, one) for value in (x, positions)]
        turned = graph.op("RotaryEmbedding", *tokens, *tables.stored(graph), domain=MICROSOFT, num_heads=n_heads)
        return graph.op("Squeeze", turned, one)

    def attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, *, n_heads: int, is_last_layer: bool, window: int | None
    ) -> ir.Value:
        """Attend from all tokens, or from the outputs, to the tokens before them in prefix and row.

        The operator takes the last tokens of a row as its queries, with their keys and values. In the last layer these
        are the outputs, and all that stands before them goes with the prefix, as the past:

            prefix | places before the row | row.start ... present | present ... row.stop
            ----------------------- past ------------------------- | queries, keys, values
        """
        graph, zero, shape = self._graph, self._graph.ints(0), self._shape
        attributes: dict[str, float] = {"num_heads": n_heads, "kv_num_heads": shape.n_kv_heads, "scale": shape.scale}
        attributes |= {} if shape.cap is None else {"softcap": shape.cap}
        attributes |= {} if window is None else {"local_window_size": window}
        query = self._filled(query, n_heads)
        key, value = (self._filled(x, self._shape.n_kv_heads) for x in (key, value))
        prefixes = self._prefixes()
        self._keep(key, value)
        query_offsets = self._last_offsets if is_last_layer else self._offsets

        def of_row(tape: Tape, row: Row) -> ir.Value:
            start, stop = (tape.op("Gather", [query_offsets, index]) for index in (row.index, row.next_index))
            present = tape.op("Sub", [row.stop, tape.op("Sub", [stop, start])])
            past_places = [[tape.op("Gather", [column, row.index]) for column in self._before]]
            if is_last_layer:
                past_places.append([row.start, present])
            past = [
                self._lengthened(tape, prefix, [tape.op("Slice", [states, *place, zero]) for place in past_places])
                for prefix, states in zip(prefixes, (key, value), strict=True)
            ]
            places = ((start, stop), (present, row.stop), (present, row.stop))
            parts = [
                tape.op("Unsqueeze", [tape.op("Slice", [states, *place, zero]), zero])
                for states, place in zip((query, key, value), places, strict=True)
            ]
            n_past = tape.op("Shape", [past[0]], {"start": 2, "end": 3})
            n_total = tape.op("Add", [n_past, tape.op("Sub", [row.stop, present])])
            last = tape.op("Cast", [tape.op("Sub", [n_total, graph.ints(1)])], {"to": ir.DataType.INT32})
            total = tape.op("Cast", [tape.op("Squeeze", [n_total, zero])], {"to": ir.DataType.INT32})
            # The outputs for keys and values are needed, although unused: the flash kernel joins them there.
            attended, _, _ = tape.op_multi_out(
                "GroupQueryAttention", [*parts, *past, last, total], attributes, domain=MICROSOFT, num_outputs=3
            )
            return tape.op("Squeeze", [attended, zero])

        return self._unfilled(each_row(graph, self._n_rows, self._offsets, of_row), n_heads)

    def last_tokens(self, hidden: ir.Value) -> ir.Value:
        """Return the states of each row's last token, (n_rows, n_features), from the outputs."""
        graph = self._graph
        stops = graph.op("Slice", self._last_offsets, graph.ints(1), graph.ints(2**62), graph.ints(0))
        return graph.op("Gather", hidden, graph.op("Sub", stops, graph.ints(1)), axis=0)

    def rms_norm(self, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
        """Normalise in one operator."""
        return fused.rms_norm(self._graph, x, name, scale, epsilon)

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x * sigmoid(x), in one pass."""
        return fused.silu(self._graph, x)

    def outputs(self) -> Mapping[str, ir.Value]:
        """Return the keys and values of the first tokens, (n_layers, 2, n_kv_heads, n_kept, head_size)."""
        return {"kept": self._graph.op("Concat", *self._kept, axis=0)}

    def _prefixes(self) -> tuple[ir.Value, ir.Value]:
        """Return the prefix's keys and values for the current layer, (1, n_kv_heads, n_prefix, head_size)."""
        graph, layer = self._graph, len(self._kept)
        of_layer = graph.op("Gather", self._prefix, graph.int_scalar(layer), axis=0)
        keys, values = (graph.op("Gather", of_layer, graph.ints(i), axis=0) for i in (0, 1))
        return keys, values

    def _keep(self, key: ir.Value, value: ir.Value) -> None:
        graph = self._graph
        firsts = [graph.op("Slice", x, graph.ints(0), self._n_kept, graph.ints(0)) for x in (key, value)]
        by_head = [graph.op("Unsqueeze", self._by_head(graph.op, x), graph.ints(0, 1)) for x in firsts]
        self._kept.append(graph.op("Concat", *by_head, axis=1))

    def _lengthened(self, tape: Tape, prefix: ir.Value, blocks: Sequence[ir.Value]) -> ir.Value:
        """Return a prefix with blocks of states after it, (n, n_kv_heads * head_size) each."""
        states = tape.op("Concat", blocks, {"axis": 0}) if len(blocks) > 1 else blocks[0]
        by_head = self._by_head(lambda type_, *inputs, **attributes: tape.op(type_, inputs, attributes), states)
        return tape.op("Concat", [prefix, tape.op("Unsqueeze", [by_head, self._graph.ints(0)])], {"axis": 2})

    def _by_head(self, op: Op, x: ir.Value) -> ir.Value:
        """Return states, (n, n_kv_heads * head_size), as (n_kv_heads, n, head_size); n may be 0."""
        shape = self._graph.ints(0, self._shape.n_kv_heads, self._filled_size)
        return op("Transpose", op("Reshape", x, shape), perm=[1, 0, 2])

    def _filled(self, x: ir.Value, n_heads: int) -> ir.Value:
        """Return states, (n, n_heads * head_size), with heads of a size that attention takes."""
        graph, shape = self._graph, self._shape
        if self._filled_size == shape.head_size:
            return x
        by_head = graph.op("Reshape", x, graph.ints(0, n_heads, shape.head_size))
        filled = graph.op("Pad", by_head, graph.ints(0, 0, 0, 0, 0, self._filled_size - shape.head_size))
        return graph.op("Flatten", filled, axis=1)

    def _unfilled(self, x: ir.Value, n_heads: int) -> ir.Value:
        graph, shape = self._graph, self._shape
        if self._filled_size == shape.head_size:
            return x
        by_head = graph.op("Reshape", x, graph.ints(0, n_heads, self._filled_size))
        heads = graph.op("Slice", by_head, graph.ints(0), graph.ints(shape.head_size), graph.ints(2))
        return graph.op("Flatten", heads, axis=1)
