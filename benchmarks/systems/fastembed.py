"""fastembed's TextCrossEncoder over the graph that Optimum exports: batches of 64 in the order of arrival."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder


class Fastembed:
    def __init__(self, model: str, n_threads: int) -> None:
        data = [path.name for path in Path(model).glob("model.onnx?data")]
        TextCrossEncoder.add_custom_model(
            "local/model", ModelSource(hf="local/model"), model_file="model.onnx", additional_files=data
        )
        self._model = TextCrossEncoder("local/model", threads=n_threads, cuda=False, specific_model_path=model)
        self.versions = {name: version(name) for name in ("fastembed", "onnxruntime", "tokenizers")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        self._model.model.tokenizer.enable_truncation(max_length)
        return [float(score) for score in self._model.rerank(query, passages, batch_size=batch_size or 64)]
