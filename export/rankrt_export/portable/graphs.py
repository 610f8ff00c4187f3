"""The graph files: fp32 and fp16 written node by node, and int8 by ONNX Runtime's own quantizer, as others make it."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import onnx_ir as ir

from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.tokenizer import has_token_types
from rankrt_export.graph.blueprint import Blueprint
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import FLOAT, Arithmetic, Graph
from rankrt_export.portable.passes import made_portable
from rankrt_export.precision.float16 import Float16
from rankrt_export.precision.float32 import Float32Rows, matmul

PortablePrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
PORTABLE_PRECISIONS: tuple[PortablePrecision, ...] = get_args(PortablePrecision)
# The names that Optimum gave them, and that Transformers.js, sentence-transformers and fastembed look for.
FILES: dict[PortablePrecision, str] = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "int8": "model_quantized.onnx",
}
# Of plain operators, and weights as others have them.
_ARITHMETIC: Mapping[Literal["fp32", "fp16"], Arithmetic] = {
    "fp32": Float32Rows(multiply=matmul),
    "fp16": Float16(multiply=matmul),
}
# A protocol buffer holds 2 GiB. Weights of a larger model are beside it, in model.onnx_data.
_MOST_BYTES = (2 << 30) - (64 << 20)


def write_graph(
    checkpoint: Checkpoint,
    precision: Literal["fp32", "fp16"],
    path: Path,
    scratch: Path,
    progress: Callable[[int], None],
) -> None:
    """Write a checkpoint's graph with its weights; the folder `scratch` is used on the way.

    Inputs are input_ids, attention_mask and, where the model has them, token_type_ids, each int64 (n_rows, n_tokens).
    The output is logits, float32 (n_rows, 1). Raises RangeError if a weight has a value that fp16 cannot hold.
    """
    with DataFiles(scratch, progress) as data:
        arithmetic = _ARITHMETIC[precision]
        blueprint = Blueprint(
            config=checkpoint.config,
            weights=checkpoint.weights,
            target="cpu",
            operators="portable",
            readouts=(),
            max_length=checkpoint.max_length,
            has_token_types=has_token_types(checkpoint),
            head=checkpoint.saved.head,
            new_graph=partial(Graph, weights=checkpoint.weights, data=data, precision=arithmetic),
        )
        (section,) = ARCHITECTURES[checkpoint.architecture](blueprint)
        graph, flat = section.graph, section.outputs["logits"]
        flat.type = ir.TensorType(FLOAT)
        logits = graph.op("Unsqueeze", flat, graph.ints(1))
        logits.shape = ir.Shape(["n_rows", 1])
        graph.save(scratch / "graph.onnx", logits=logits)
    model = ir.load(scratch / "graph.onnx")
    made_portable(model)
    n_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if n_bytes > _MOST_BYTES:
        ir.save(model, path, external_data=f"{path.name}_data")
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


def quantize(model: Path, path: Path, operators: Sequence[str]) -> None:
    """Write a graph with the weights of some operators in int8, and activations rounded when it runs.

    Weights have 7 bits, so that products of bytes do not saturate on processors that add two at once.
    """
    with _quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice to prepare the model, which `made_portable` did, off the terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
