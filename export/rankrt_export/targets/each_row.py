"""A Loop over the rows of a run. Positions and attention need it."""

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.tape import Tape

from rankrt_export.graph.graph import Graph


class Row:
    """The row of one turn of the loop: its index, start and stop, each of shape (1,)."""

    def __init__(self, graph: Graph, tape: Tape, offsets: ir.Value, index: ir.Value) -> None:
        self.index = tape.op("Unsqueeze", [index, graph.ints(0)])
        self.next_index = tape.op("Add", [self.index, graph.ints(1)])
        self.start = tape.op("Gather", [offsets, self.index])
        self.stop = tape.op("Gather", [offsets, self.next_index])


def each_row(graph: Graph, n_rows: ir.Value, offsets: ir.Value, of_row: Callable[[Tape, Row], ir.Value]) -> ir.Value:
    """Run `of_row` for every row and concatenate the results, (row's n_tokens, n_features)."""
    results = graph.op("SequenceEmpty", dtype=ir.DataType.FLOAT)
    body = _loop_body(lambda tape, index: of_row(tape, Row(graph, tape, offsets, index)))
    joined = graph.loop(n_rows, results, body)
    return graph.op("ConcatFromSequence", joined, axis=0)


def _loop_body(turn: Callable[[Tape, ir.Value], ir.Value]) -> ir.Graph:
    """Return the body of a Loop that appends the result of each turn to a sequence of float tensors."""
    index = ir.val("index", ir.DataType.INT64, [])
    keep_going = ir.val("keep_going", ir.DataType.BOOL, [])
    results = ir.Value(name="results", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
    tape = Tape()
    keeps_going = tape.op("Identity", [keep_going])
    longer = tape.op("SequenceInsert", [results, turn(tape, index)])
    longer.type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    keeps_going.type = ir.TensorType(ir.DataType.BOOL)
    return ir.Graph([index, keep_going, results], [keeps_going, longer], nodes=tape.nodes, name="each_row")
