"""How the weights of linear layers are stored: once for all graphs, as the panels that rankrt's kernels multiply.

A panel has 32 outputs. In it one input of all outputs stands together in fp32, and four inputs of an output in int8, as
one instruction takes them. Places beyond the inputs and outputs of a layer are 0. docs/artifact.md specifies it to the
byte. Graphs of other operators undo it by operators of constants.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rankrt_export.graph.graph import Graph

# The outputs of a panel.
PANEL = 32


def n_panels(n_out: int) -> int:
    """Return how many panels so many outputs take."""
    return -(-n_out // PANEL)


def panels_of(blocks: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Yield the panels, (32, n_in) each, of weights whose rows come in blocks of any height; the last is filled up."""
    rest: npt.NDArray[Any] | None = None
    for block in blocks:
        rows = block if rest is None else np.concatenate([rest, block])
        n_whole = len(rows) // PANEL * PANEL
        yield from (rows[start : start + PANEL] for start in range(0, n_whole, PANEL))
        rest = rows[n_whole:]
    if rest is not None and len(rest):
        yield np.pad(rest, ((0, PANEL - len(rest)), (0, 0)))


def without_filling(graph: Graph, x: ir.Value, *, axis: int, n: int, n_filled: int) -> ir.Value:
    """Return the first n of the places of an axis, which was filled up to `n_filled`."""
    if n == n_filled:
        return x
    return graph.op("Slice", x, graph.ints(0), graph.ints(n), graph.ints(axis))
