"""Optimum's ONNX Runtime classes: the graph as exported, optimised (O3), or with ONNX Runtime's dynamic int8."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import transformers
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer
from optimum.onnxruntime.configuration import AutoOptimizationConfig

from benchmarks.systems import batches

# Optimum's names of its files.
_EXPORTED, _INT8 = "model.onnx", "model_quantized.onnx"


class Optimum:
    """Padded to the longest row of a batch, as the model card shows it."""

    def __init__(self, model: str, n_threads: int, device: str = "cpu") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        (graph,) = sorted(Path(model).glob("*.onnx"))
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        provider, of_provider = _provider(device)
        self._model = ORTModelForSequenceClassification.from_pretrained(
            model, file_name=graph.name, provider=provider, provider_options=of_provider, session_options=options
        )
        if provider not in self._model.providers:
            raise RuntimeError(f"ONNX Runtime did not load {provider} and uses {self._model.providers}")
        build = "onnxruntime" if device == "cpu" else "onnxruntime-gpu"
        self.versions = {name: version(name) for name in ("optimum-onnx", build, "transformers")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        logits: list[float] = []
        for batch in batches(passages, batch_size):
            pairs = [(query, passage) for passage in batch]
            rows = self._tokenizer(pairs, padding=True, truncation=True, max_length=max_length, return_tensors="np")
            logits += self._model(**rows).logits[:, 0].tolist()
        return logits


def _provider(device: str) -> tuple[str, dict[str, int] | None]:
    """Return a device's provider and its options."""
    if device == "cpu":
        return "CPUExecutionProvider", None
    return "CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)}


def export(checkpoint: Path, out: Path) -> None:
    """Export like `optimum-cli export onnx --task text-classification`."""
    main_export(str(checkpoint), out, task="text-classification")


def optimize(exported: Path, out: Path) -> None:
    """Apply the fusions of level O3 to a copy, because Optimum removes the data files of its input."""
    with TemporaryDirectory(dir=out.parent) as folder:
        copy = shutil.copytree(exported, Path(folder) / "exported")
        ORTOptimizer.from_pretrained(str(copy)).optimize(
            optimization_config=AutoOptimizationConfig.O3(), save_dir=str(out), file_suffix="O3"
        )


def quantize(exported: Path, out: Path) -> None:
    """Apply ONNX Runtime's `quantize_dynamic`: per channel, with 7 bits if products of bytes would saturate."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.mkdir()
    for file in exported.iterdir():
        if not file.name.startswith(_EXPORTED):
            (out / file.name).write_bytes(file.read_bytes())
    quantize_dynamic(
        exported / _EXPORTED,
        out / _INT8,
        per_channel=True,
        reduce_range="vnni" not in Path("/proc/cpuinfo").read_text(),
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
