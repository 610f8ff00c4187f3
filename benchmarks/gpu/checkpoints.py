"""Random checkpoints of real shapes, with the tiny model's tokenizer, and the export of checkpoints. Needs PyTorch."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu.pytorch import DEVICE
from benchmarks.gpu.subject import TINY_CHECKPOINT
from rankrt.artifact.precisions import Precision
from rankrt_export.pipeline import Options, export

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_encoder(config: Mapping[str, Any], folder: Path) -> None:
    """Write an XLM-R whose logits differ from row to row, as a trained one's do."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.AutoModelForSequenceClassification.from_config(transformers.XLMRobertaConfig(**config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "embeddings" in name and value.ndim == 2:
                value.normal_(0.0, 1.0)
            elif value.ndim == 2:  # products keep the size of their input; attention is sharper, logits are larger
                gain = 2.0 if ".query" in name or ".key" in name else 6.0 if "out_proj" in name else 1.0
                value.normal_(0.0, gain * value.shape[1] ** -0.5)
            elif name.endswith("bias"):
                value.normal_(0.0, 0.1)
    _save(model, folder)


def write_decoder(family: str, config: Mapping[str, Any], folder: Path) -> None:
    """Write a decoder with a head of one output."""
    torch.manual_seed(0)
    described = getattr(transformers, f"{family}Config")(**config)
    with torch.device(DEVICE):
        model = transformers.AutoModelForSequenceClassification.from_config(described)
    _save(model, folder)


def export_for_cuda(
    checkpoint: Path, folder: Path, precisions: Sequence[Precision] = ("fp32", "fp16"), *, prompt: str | None = None
) -> None:
    """Export a checkpoint without verification: a score that is wrong on this GPU is a finding of a stage."""
    options = Options(precisions=precisions, targets=["cuda"], is_verified=False, prompt=prompt)
    export(str(checkpoint), folder, options)


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(TINY_CHECKPOINT / name, folder)
