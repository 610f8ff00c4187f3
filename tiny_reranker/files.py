"""The files of a checkpoint: writes a model and its tokenizer to a folder, and reads them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from tiny_reranker.vocabulary import END, PAD, START, UNKNOWN

LONGEST_ROW_TOKENS = 512
_SPECIAL_TOKENS = {
    "bos_token": START,
    "cls_token": START,
    "eos_token": END,
    "sep_token": END,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
}
_TOKENIZER_CONFIG = {
    # tokenizer.json has the lower-casing. XLMRobertaTokenizerFast would replace it with its own normaliser.
    "tokenizer_class": "PreTrainedTokenizerFast",
    **_SPECIAL_TOKENS,
    "model_max_length": LONGEST_ROW_TOKENS,
    "model_input_names": ["input_ids", "attention_mask"],
    "padding_side": "right",
    "truncation_side": "right",
    "clean_up_tokenization_spaces": False,
}


def save_checkpoint(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model, with weights in float16, and its tokenizer in Hugging Face's layout."""
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    _write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Tokenizer]:
    """Read a model, ready to score, and its tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
