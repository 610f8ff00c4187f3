"""PyTorch at its best on a CPU without padding: scaled-dot-product attention, one row of exact length at a time."""

from collections.abc import Sequence

import torch
import transformers


class RowByRow:
    """fp32."""

    def __init__(self, model: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._model = transformers.AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def score(self, query: str, passages: Sequence[str], max_length: int) -> list[float]:
        rows = self._tokenizer([(query, passage) for passage in passages], truncation=True, max_length=max_length)
        with torch.inference_mode():
            return [self._model(torch.tensor([ids])).logits[0, 0].item() for ids in rows["input_ids"]]


class DynamicInt8(RowByRow):
    """PyTorch's own dynamic quantization of all linear layers."""

    def __init__(self, model: str, n_threads: int) -> None:
        super().__init__(model, n_threads)
        self._model = torch.ao.quantization.quantize_dynamic(self._model, {torch.nn.Linear}, dtype=torch.qint8)
