"""Weights in 8 or 4 bits, in blocks along the input that share a scale. They save memory, and drift less than int8.

MatMulNBits rounds the activations as it multiplies, to 8 bits and block by block as well. So a token's outlier coarsens
the other channels of its block only. A product of random weights with 2,048 inputs, six of them outliers, is off by
.005 with 8-bit weights, and by .022 in int8. With 4-bit weights it is off by .06, activations rounded or not. With
activations in fp32 (accuracy_level 0) 4-bit products are slower, and 8-bit ones run at a tenth of the speed.

Blocks have 32 inputs. With 128 a product is a quarter faster, but its last bits depend on how many tokens are
multiplied together. With 64 that holds of 4-bit weights. Tables of vectors are stored with 8 bits, each row with a
scale of its own.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array, UInt8Array
from rankrt_export.graph.graph import FLOAT, MICROSOFT, Graph
from rankrt_export.precision.int8 import look_up_rows
from rankrt_export.precision.int8_numbers import TINIEST_SCALE
from rankrt_export.precision.methods import FixedMethod
from rankrt_export.precision.recipes import TableRecipe

# MatMulNBits' name for 8-bit activations.
_ACCURACY_LEVEL = 4
BLOCK_SIZE = 32
# Each row by its own scale: columns alike.
_TABLES = TableRecipe(factors=None)


class WeightOnly:
    """Integers of so many bits for weights; `name` is that of the data file."""

    states = FLOAT

    def __init__(self, *, name: str, bits: Literal[4, 8]) -> None:
        self.name = name
        self.bits = bits
        self.block_size = BLOCK_SIZE

    def linear(self, graph: Graph, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """Return x @ W.T + bias."""
        n_out, n_in = graph.weights.shape(weight)
        n_blocks = -(-n_in // self.block_size)
        file, key = f"layers.{self.name}.data", f"{weight}.{self.name}"

        def packed() -> Iterator[UInt8Array]:
            return (self.pack(steps) for steps, _ in map(self.round, graph.weights.blocks(weight)))

        def scales() -> Iterator[Float32Array]:
            return (found for _, found in map(self.round, graph.weights.blocks(weight)))

        stored = graph.external(file, key, np.uint8, (n_out, n_blocks, self.block_size * self.bits // 8), packed)
        scale = graph.external(file, f"{key}.scales", np.float32, (n_out, n_blocks), scales)
        attributes = {"K": n_in, "N": n_out, "bits": self.bits, "block_size": self.block_size}
        product = graph.op(
            "MatMulNBits", x, stored, scale, domain=MICROSOFT, accuracy_level=_ACCURACY_LEVEL, **attributes
        )
        return product if bias is None else graph.op("Add", product, bias)

    def lookup(self, graph: Graph, ids: ir.Value, table: str) -> ir.Value:
        """Return rows of a table, each rounded to 8 bits by its own scale."""
        return look_up_rows(graph, ids, table, _TABLES)

    def round(self, weight: Float32Array) -> tuple[UInt8Array, Float32Array]:
        """Return weights as steps, (n_out, n_blocks, block_size), and the scales, (n_out, n_blocks).

        Zero is the middle of what the bits can hold, with as many steps on either side.
        """
        n_out, n_in = weight.shape
        zero = 1 << (self.bits - 1)
        filled = np.pad(weight, ((0, 0), (0, -n_in % self.block_size))).reshape(n_out, -1, self.block_size)
        scales = np.maximum(np.abs(filled).max(axis=2) / np.float32(zero - 1), TINIEST_SCALE)
        steps: UInt8Array = (np.rint(filled / scales[..., None]) + zero).astype(np.uint8)
        return steps, scales

    def pack(self, steps: UInt8Array) -> UInt8Array:
        """Put steps into bytes: of 4 bits two, the first into its lower half."""
        return steps if self.bits == 8 else np.asarray(steps[..., 0::2] | (steps[..., 1::2] << 4), np.uint8)


W8 = WeightOnly(name="w8", bits=8)
INT4 = WeightOnly(name="int4", bits=4)

METHODS = (
    FixedMethod(target="cpu", precision="w8", arithmetic=W8),
    FixedMethod(target="cpu", precision="int4", arithmetic=INT4),
)
