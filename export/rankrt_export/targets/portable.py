"""The portable target: the inputs that transformers' tokenizers make, and no operator that is ONNX Runtime's own.

Rows are padded, and a mask says where. The operators are those for TensorRT. `portable.passes` writes them in an older
opset afterwards, which more runtimes read.
"""

import onnx_ir as ir

from rankrt_export.targets.padded_rows import PaddedRows
from rankrt_export.targets.tensorrt import TensorRtOperators
from rankrt_export.targets.tensorrt_rotary import RotaryTensorRtOperators


class MaskedRows(PaddedRows):
    """Inputs input_ids, attention_mask and if need be token_type_ids, each int64 (n_rows, longest)."""

    _integers = ir.DataType.INT64

    def _extent(self) -> tuple[ir.Value, ir.Value]:
        """Declare the mask. Return how many tokens each row has, and which places have one."""
        graph = self._graph
        mask = graph.input("attention_mask", self._integers, ["n_rows", "longest"])
        lengths = graph.op("ReduceSum", mask, graph.ints(1), keepdims=0)
        return lengths, graph.op("Cast", mask, to=ir.DataType.BOOL)


class PortableOperators(MaskedRows, TensorRtOperators):
    """Operators of encoders with absolute positions and norms after their layers."""


class RotaryPortableOperators(MaskedRows, RotaryTensorRtOperators):
    """Operators of encoders with rotary positions."""
