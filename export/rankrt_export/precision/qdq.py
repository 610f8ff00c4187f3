"""8 bits for TensorRT, written out: rounding to 8 bits and back stands in the graph before every product.

TensorRT's explicit quantization. A QuantizeLinear and a DequantizeLinear before a product, and a DequantizeLinear after
its weights, tell it to multiply in 8 bits. Between the layers all is half precision as in `Float16`. Layers that read
the same activations share one QuantizeLinear. Each has a DequantizeLinear of its own, since TensorRT looks for one
product after it. Weights are stored as MatMul reads them, (n_in, n_out), without a Transpose between. Zero points are
written, all of them 0: they say which 8 bits are meant.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import Precision
from rankrt_export.checkpoint.weights import read
from rankrt_export.graph.graph import HALF, Graph
from rankrt_export.precision.float16 import Float16
from rankrt_export.precision.float32 import matmul
from rankrt_export.precision.methods import CalibratedMethod
from rankrt_export.precision.qdq_scales import FP8, INT8, FixedRecipe, Format, StoredArray, fixed_recipes
from rankrt_export.precision.recipes import LayerGroup, Recipe, Seen


class Qdq:
    """Products of 8-bit integers or floats, as a recipe says."""

    states = HALF

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._file = f"layers.{recipe.key}.data"
        # A file of their own, so that the variant can be copied without the fp16 one.
        self._kept = Float16(matrices="kept.fp16.data", multiply=matmul)
        self._rounded: dict[ir.Value, ir.Value] = {}

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        recipe = self._recipe.layers.get(weight.removesuffix(".weight"))
        if recipe is None:
            return self._kept.linear(graph, x, weight, bias)
        if x not in self._rounded:
            self._rounded[x] = quantize(graph, x, recipe, name=weight)
        activations = graph.op("DequantizeLinear", self._rounded[x], *_step(graph, recipe))
        product = graph.op("MatMul", activations, weights(graph, weight, recipe, self._file))
        return product if bias is None else graph.op("Add", product, bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, as half precision."""
        return self._kept.lookup(graph, ids, table)


def quantize(graph: Graph, x: ir.Value, recipe: FixedRecipe, *, name: str) -> ir.Value:
    """Return activations in 8 bits; `name` is the first layer's that reads them."""
    if recipe.factors is not None:
        key = f"{name}.{recipe.format.dtype}.factors"
        x = graph.op("Mul", x, graph.array(key, recipe.factors, HALF))
    return graph.op("QuantizeLinear", x, *_step(graph, recipe))


def weights(graph: Graph, weight: str, recipe: FixedRecipe, file: str) -> ir.Value:
    """Return a layer's weights, (n_in, n_out), as they come back from their 8 bits."""
    n_out, n_in = graph.weights.shape(weight)

    def blocks() -> Iterator[StoredArray]:
        yield recipe.quantize(read(graph.weights, weight)).T

    stored = graph.external(file, weight, recipe.format.dtype, (n_in, n_out), blocks)
    scales = graph.external(file, f"{weight}.scales", np.float16, recipe.scales.shape, lambda: [recipe.scales])
    return graph.op("DequantizeLinear", stored, scales, _zero(graph, recipe, recipe.scales.shape), axis=1)


def _step(graph: Graph, recipe: FixedRecipe) -> tuple[ir.Value, ir.Value]:
    """Return the scale and the zero point of activations."""
    return graph.constant(f"half({recipe.step!r})", np.array(recipe.step, np.float16)), _zero(graph, recipe, ())


def _zero(graph: Graph, recipe: FixedRecipe, shape: tuple[int, ...]) -> ir.Value:
    dtype = recipe.format.dtype
    return graph.constant(f"{dtype}(0){list(shape)}", np.zeros(shape, dtype))


def _method(precision: Precision, format_: Format) -> CalibratedMethod:
    """Return the method of 8-bit numbers, whose other weights are in half precision, and widened on a CPU."""

    def layer_recipes(group: LayerGroup, weights: Sequence[Float32Array], seen: Seen) -> list[FixedRecipe]:
        return fixed_recipes(format_, weights, seen.largest, seen.sampled)

    return CalibratedMethod(
        target="tensorrt",
        precision=precision,
        arithmetic=Qdq,
        layer_recipes=layer_recipes,
        has_tables=False,
        bytes_per_weight=2,
        bytes_in_memory=4,
    )


METHODS = (_method("int8", INT8), _method("fp8", FP8))
