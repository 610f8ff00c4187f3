"""Weights in 4 bits, in blocks along the input that share a scale, and products in fp32: for memory, not for speed.

MatMulNBits widens the weights as it multiplies. Its faster mode rounds the activations too, block by block, to 8 bits;
here nothing but the weights is rounded. Tables of vectors are stored with 8 bits, each row with a scale of its own.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array, UInt8Array
from rankrt_export.calibration import TableRecipe
from rankrt_export.graph import FLOAT, MICROSOFT, Graph
from rankrt_export.precision.int8 import rounded_rows
from rankrt_export.quantization import TINIEST_SCALE

LAYERS_DATA = "layers.int4.data"
BITS, BLOCK_SIZE = 4, 32
# What stands for zero, and how many steps there are to either side.
_ZERO, _N_STEPS = 8, 7
# Each row by its own scale: columns alike.
_TABLES = TableRecipe(factors=None)


class Int4:
    """4-bit integers for weights, nothing for activations."""

    states = FLOAT

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        n_out, n_in = graph.weights.shape(weight)
        n_blocks = -(-n_in // BLOCK_SIZE)

        def packed() -> Iterator[UInt8Array]:
            return (pack(steps) for steps, _ in map(rounded_blocks, graph.weights.blocks(weight)))

        def scales() -> Iterator[Float32Array]:
            return (found for _, found in map(rounded_blocks, graph.weights.blocks(weight)))

        shape = (n_out, n_blocks, BLOCK_SIZE // 2)
        stored = graph.external(LAYERS_DATA, f"{weight}.int4", np.uint8, shape, packed)
        scale = graph.external(LAYERS_DATA, f"{weight}.int4.scales", np.float32, (n_out, n_blocks), scales)
        attributes = {"K": n_in, "N": n_out, "bits": BITS, "block_size": BLOCK_SIZE, "accuracy_level": 0}
        product = graph.op("MatMulNBits", x, stored, scale, domain=MICROSOFT, **attributes)
        return product if bias is None else graph.op("Add", product, bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, each rounded to 8 bits by its own scale."""
        return rounded_rows(graph, ids, table, _TABLES)


def rounded_blocks(weight: Float32Array) -> tuple[UInt8Array, Float32Array]:
    """Return the steps, (n_out, n_blocks, BLOCK_SIZE) from 1 to 15, and the scales, (n_out, n_blocks), of weights."""
    n_out, n_in = weight.shape
    filled = np.pad(weight, ((0, 0), (0, -n_in % BLOCK_SIZE))).reshape(n_out, -1, BLOCK_SIZE)
    scales = np.maximum(np.abs(filled).max(axis=2) / np.float32(_N_STEPS), TINIEST_SCALE)
    steps: UInt8Array = (np.rint(filled / scales[..., None]) + _ZERO).astype(np.uint8)
    return steps, scales


def pack(steps: UInt8Array) -> UInt8Array:
    """Put two steps into a byte, the first into its lower half."""
    return np.asarray(steps[..., 0::2] | (steps[..., 1::2] << 4), np.uint8)
