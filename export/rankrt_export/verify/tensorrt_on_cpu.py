"""A graph for TensorRT computed on a CPU, in plain operators: this proves the graph and its precision, not an engine.

ONNX Runtime computes half precision on a CPU in fp32 and leaves out the roundings between the operators: 3 * 300 * 300
comes out of two such products as 270,000, which is infinite in half precision. So the graph is written for it in fp32,
with every result that is half precision cast there and back, which it keeps.

What 8 bits come back as is computed as the graph says it, in fp32 and rounded, then multiplied in fp32. An engine
multiplies the 8 bits themselves and rounds the product only, so it is never further from what is exact.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from rankrt.arrays import Float32Array, Int32Array
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.backends.batch import padded
from rankrt.backends.planner import divide
from rankrt.backends.session import import_onnxruntime, session_options
from rankrt.errors import ScoreError
from rankrt.host.cpu import this_machine
from rankrt.text.pairs import Pair
from rankrt_export.verify.rows import RowMaker

# Rows of a run have so many tokens at most, those counted that they are filled up with.
_RUN_TOKENS = 1024


class GraphOnCpu:
    """A variant whose rows are padded, run on the CPU to be compared with PyTorch."""

    def __init__(self, artifact: Artifact, variant: Variant, rows: RowMaker) -> None:
        self.variant = variant
        self._rows = rows
        self._session = _session(artifact.path(variant.graph))
        self._inputs = {node.name for node in self._session.get_inputs()}

    def score(self, pairs: Iterable[Pair], *, cutoff_layers: Iterable[int] | None = None) -> Float32Array:
        """Return a logit for each pair, (n_pairs,), or at its exit (1, n_pairs). Raises ScoreError for what is none."""
        encoded = self._rows.encode(list(pairs))
        logits = np.empty(encoded.n_rows, np.float32)
        for rows in divide(encoded.lengths, _RUN_TOKENS, self.variant.layout):
            logits[rows] = self.run(padded(encoded, rows))
        if not np.isfinite(logits).all():
            pair = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise ScoreError(
                f"{self.variant.name} answered {logits[pair]} for pair {pair}: numbers of this model are too large for"
                " its precision; use another"
            )
        return logits if cutoff_layers is None else logits[None]

    def run(self, feed: Mapping[str, Int32Array]) -> Float32Array:
        """Return a logit for each row of a run, (n_rows,). Arrays that the graph does not declare are left out."""
        declared = {name: array for name, array in feed.items() if name in self._inputs}
        (logits,) = self._session.run(["logits"], declared)
        return np.asarray(logits, np.float32)

    def close(self) -> None:
        """Do nothing: the session goes with the last reference to it."""


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph in fp32, with every result rounded that is half precision."""
    types = _types(model)
    written = onnx.ModelProto()
    written.CopyFrom(model)
    del written.graph.node[:], written.graph.value_info[:]
    stored = {tensor.name for tensor in model.graph.initializer}
    tables = stored & {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and tensor.name not in tables:
            written.graph.node.append(_cast(tensor.name, _single(tensor.name), TensorProto.FLOAT))
    for node in model.graph.node:
        written.graph.node.extend(_rounded_node(node, types, tables))
    return written


def _rounded_node(node: onnx.NodeProto, types: dict[str, int], tables: set[str]) -> Sequence[onnx.NodeProto]:
    """Return a node in fp32, and the casts after it. A table that is looked up stays half precision itself."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for i, name in enumerate(node.input):
        if types.get(name) == TensorProto.FLOAT16 and name not in tables:
            copy.input[i] = _single(name)
    (output,) = node.output
    if types.get(output) != TensorProto.FLOAT16:
        return [copy]
    if node.input[0] in tables and node.op_type == "Gather":
        return [copy, _cast(output, _single(output), TensorProto.FLOAT)]
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            attribute.i = TensorProto.FLOAT
    exact = f"{output}.exact"
    copy.output[0] = exact
    return [copy, _cast(exact, output, TensorProto.FLOAT16), _cast(output, _single(output), TensorProto.FLOAT)]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of all values."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    inferred = {value.name: value.type.tensor_type.elem_type for value in values}
    return inferred | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _cast(name: str, to_name: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to_name], to=to)


def _single(name: str) -> str:
    return f"{name}.single"


def _session(path: Path) -> Any:
    """Load a graph, rounded, with the data files beside it."""
    model = rounded(onnx.load(path, load_external_data=False))
    options = session_options(this_machine().cores.n)
    # Products in 8 bits are a CPU's own: what is asked here is what the graph says.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    ort = import_onnxruntime()
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
