"""The head of an encoder, written into its graph in fp32. It is 0.3 % of the work of one short row."""

from collections.abc import Mapping

import onnx_ir as ir

from rankrt_export.checkpoint.head import Activation, Dense, Head, Norm
from rankrt_export.graph.graph import Graph
from rankrt_export.precision.float32 import gemm

_OPERATORS: Mapping[Activation, str] = {"gelu": "Gelu", "relu": "Relu", "tanh": "Tanh"}


def score(graph: Graph, head: Head, pooled: ir.Value) -> ir.Value:
    """Return a head's logit for each row, (n_rows,), from the pooled states, (n_rows, n_features), in fp32."""
    x = pooled
    for i, layer in enumerate(head.layers):
        x = _dense(graph, layer, f"head.{i}", x) if isinstance(layer, Dense) else _norm(graph, layer, f"head.{i}", x)
    logits = graph.op("Reshape", x, graph.ints(-1))
    logits.shape = ir.Shape(["n_rows"])
    return logits


def _dense(graph: Graph, layer: Dense, name: str, x: ir.Value) -> ir.Value:
    bias = None if layer.bias is None else graph.array(f"{name}.bias", layer.bias)
    x = gemm(graph, x, graph.array(f"{name}.weight", layer.weight), bias)
    if layer.activation == "silu":
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    return x if layer.activation == "identity" else graph.op(_OPERATORS[layer.activation], x)


def _norm(graph: Graph, layer: Norm, name: str, x: ir.Value) -> ir.Value:
    bias = None if layer.bias is None else graph.array(f"{name}.bias", layer.bias)
    scale = graph.array(f"{name}.scale", layer.scale)
    return graph.op("LayerNormalization", x, scale, *([] if bias is None else [bias]), axis=-1, epsilon=layer.epsilon)
