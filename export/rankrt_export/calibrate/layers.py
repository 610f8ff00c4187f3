"""The linear layers and tables of an architecture, found by building its graph without writing anything."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.graph.blueprint import Blueprint, Readout
from rankrt_export.graph.graph import FLOAT, Graph
from rankrt_export.precision.recipes import LayerGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What a variant's precision decides about: linear layers, in their order, and tables of vectors."""

    groups: tuple[LayerGroup, ...]
    tables: tuple[str, ...]


def layers_of(checkpoint: Checkpoint, readout: Readout | None = None) -> Layers:
    """Return the layers and tables whose precision is a variant's to choose; of a decoder those up to a readout."""
    recorder = _Recorder()
    blueprint = Blueprint(
        config=checkpoint.config,
        weights=checkpoint.weights,
        target="cpu",
        operators="cpu",
        readouts=[] if readout is None else [readout],
        max_length=1,
        new_graph=lambda: Graph(weights=checkpoint.weights, data=_Nowhere(), precision=recorder),
    )
    ARCHITECTURES[checkpoint.architecture](blueprint)
    groups = []
    for x, layers in recorder.layers.items():
        node = x.producer()
        is_after_gelu = node is not None and node.op_type == "Gelu"
        groups.append(LayerGroup(layers=tuple(layers), is_after_gelu=is_after_gelu))
    return Layers(groups=tuple(groups), tables=tuple(recorder.tables))


class _Recorder:
    """A precision that multiplies nothing and remembers what it was asked for."""

    states = FLOAT

    def __init__(self) -> None:
        self.layers: dict[ir.Value, list[str]] = {}
        self.tables: list[str] = []

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        self.layers.setdefault(x, []).append(weight.removesuffix(".weight"))
        return graph.op("Identity", x)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        self.tables.append(table.removesuffix(".weight"))
        return graph.op("Identity", ids)


class _Nowhere:
    """Data files that are not written."""

    def tensor(
        self, file: str, key: str, dtype: np.dtype[Any], shape: Iterable[int], blocks: Callable[[], Iterable[Any]]
    ) -> ir.ExternalTensor:
        return ir.ExternalTensor(Path(file), 0, 0, ir.DataType.from_numpy(dtype), shape=ir.Shape(shape), name=key)
