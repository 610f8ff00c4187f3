"""What an architecture is written from, and what it writes: one graph, or a section for each exit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Layout
from rankrt.artifact.precisions import OperatorsName, Target
from rankrt_export.checkpoint.head import Head
from rankrt_export.checkpoint.weights import Weights
from rankrt_export.graph.graph import Graph

# Whose operators a graph has: those of a library that the runtime uses, or plain ones for any other.
GraphOperators: TypeAlias = OperatorsName | Literal["portable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """How a causal model's score is read after a layer: the product of a row's last state with a vector.

    cap         the bound of logits, as cap * tanh(logit / cap); None without one
    subtracted  the vector of a second logit, which is subtracted; None if `vector` is a difference or has no second
    """

    layer: int
    vector: Float32Array
    cap: float | None = None
    subtracted: Float32Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A checkpoint for one target in one precision.

    operators   those of the library that runs it
    config      its config.json
    readouts    of a causal model, in ascending order of their layers; of any other none
    cuts        other layers of a causal model after which a graph ends, before the last readout
    max_length  the most tokens that a row may have
    has_token_types  the passage of a row is of another type than the query, which the model can tell
    head        of an encoder, in place of the one that its class has
    new_graph   begins a graph; all graphs of a variant share their data files
    """

    config: Mapping[str, Any]
    weights: Weights
    target: Target
    operators: GraphOperators
    readouts: Sequence[Readout]
    max_length: int
    new_graph: Callable[[], Graph]
    cuts: Sequence[int] = ()
    has_token_types: bool = False
    head: Head | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A graph, how it takes its rows, its outputs by name, and the layer of its exit if it has one."""

    graph: Graph
    layout: Layout
    outputs: Mapping[str, ir.Value]
    layer: int | None = None


Architecture: TypeAlias = Callable[[Blueprint], Sequence[Section]]
