"""Rewriting a graph for more runtimes: an older opset, no rare operators, weights as they are multiplied."""

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnx_ir.tape import Tape

# Of 2022, when LayerNormalization came. The oldest ONNX Runtime that was tried is 1.15.
OPSET, IR_VERSION = 17, 8


def made_portable(model: ir.Model) -> None:
    """Rewrite a model in place, with its weights in memory."""
    ShapeInferencePass()(model)  # which type a GELU's input has
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            _fold_transpose(graph, node)
        elif node.op_type == "Gelu":
            _expand_gelu(graph, node)
    graph.opset_imports.clear()
    graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _fold_transpose(graph: ir.Graph, node: ir.Node) -> None:
    """Store a weight as it is multiplied: tools that quantize look for weights at the product itself."""
    (weight,), (output,) = node.inputs, node.outputs
    assert weight is not None and weight.const_value is not None and weight.name is not None, "an initializer"
    name = f"{weight.name}.transposed"
    if name not in graph.initializers:
        content = np.ascontiguousarray(weight.const_value.numpy().T)
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(content, name=name)))
    ir.convenience.replace_all_uses_with(output, graph.initializers[name])
    graph.remove(node, safe=True)
    if not weight.uses():
        graph.initializers.pop(weight.name)


def _expand_gelu(graph: ir.Graph, node: ir.Node) -> None:
    """Write GELU as 0.5 * x * (1 + erf(x / sqrt(2))). The operator is of opset 20."""
    (x,), (output,) = node.inputs, node.outputs
    assert x is not None, "it has an input"
    tape = Tape()
    dtype = x.dtype
    assert dtype is not None, "types were inferred"

    def number(value: float) -> ir.Value:
        name = f"gelu.{value!r}.{dtype.name}"
        if name not in graph.initializers:
            content = np.array(value, dtype.numpy())
            graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(content, name=name)))
        return graph.initializers[name]

    bent = tape.op("Erf", [tape.op("Mul", [x, number(math.sqrt(0.5))])])
    half = tape.op("Mul", [x, number(0.5)])
    found = tape.op("Mul", [half, tape.op("Add", [bent, number(1.0)])])
    graph.insert_before(node, list(tape.nodes))
    ir.convenience.replace_all_uses_with(output, found)
    graph.remove(node, safe=True)
