"""Norm and activation of a causal model, in operators that ONNX Runtime has on CPUs and on CUDA."""

import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt_export.graph.graph import MICROSOFT, Graph


def rms_norm(graph: Graph, x: ir.Value, name: str, scale: Float32Array, epsilon: float) -> ir.Value:
    """Normalise float32; the result has the type of the scale, which is the states' type."""
    stored = graph.array(name, scale, graph.states)
    return graph.op("SimplifiedLayerNormalization", x, stored, axis=-1, epsilon=epsilon, stash_type=1)


def silu(graph: Graph, x: ir.Value) -> ir.Value:
    """Return x * sigmoid(x), in one pass."""
    return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)
