"""ONNX Runtime's own int8: `quantize_dynamic` of the graph that torch.export makes, one exact-length row at a time."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic

from rankrt.machine import this_machine
from rankrt.sources import Hub
from rankrt_export.checkpoint import open_checkpoint
from rankrt_export.traced import trace


class Dynamic:
    """Weights per channel; 8 bits where the processor has VNNI, 7 where products of bytes would saturate."""

    def __init__(self, model: str, n_threads: int) -> None:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name) / "traced.onnx", Path(name) / "dynamic.onnx"
            trace(open_checkpoint(model, Hub()), source)
            quantize_dynamic(
                source,
                target,
                per_channel=True,
                reduce_range=not _has_vnni(),
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
            )
            self._session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
        self.versions = {"onnxruntime": onnxruntime.__version__, "transformers": transformers.__version__}

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        rows = self._tokenizer([(query, passage) for passage in passages], truncation=True, max_length=max_length)
        return [self._session.run(None, {"input_ids": np.array([ids])})[0].item() for ids in rows["input_ids"]]


def _has_vnni() -> bool:
    return any("vnni" in instruction for instruction in this_machine().instructions)
