"""Checkpoints of real architectures, tiny and random, in the real file layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rankrt.artifact.manifest import Variant

torch = pytest.importorskip("torch", reason="needs the export extra")
transformers = pytest.importorskip("transformers", reason="needs the export extra")

N_PIECES = 400
WITH_TOKEN_TYPES = {"AlbertConfig", "BertConfig", "ElectraConfig"}

Make = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Make:
    """Write a checkpoint of a transformers configuration class with random weights and a byte-level tokenizer."""

    def make(config: type[Any] | str = "XLMRobertaConfig", name: str = "checkpoint", **changes: Any) -> Path:
        return checkpoint_of(tmp_path / name, config, **changes)

    return make


def checkpoint_of(
    folder: Path, config: type[Any] | str, *, has_token_types: bool | None = None, gain: float = 9.0, **changes: Any
) -> Path:
    """Write a checkpoint; its tokenizer gives token types as the real ones of the configuration do, unless told."""
    torch.manual_seed(0)
    config_class = getattr(transformers, config) if isinstance(config, str) else config
    model = transformers.AutoModelForSequenceClassification.from_config(config_class(**(SHAPE | changes))).eval()
    spread(model, gain)
    model.save_pretrained(folder)
    is_typed = config_class.__name__ in WITH_TOKEN_TYPES if has_token_types is None else has_token_types
    write_tokenizer(folder, is_bert=is_typed)
    return folder


SHAPE = {
    "vocab_size": N_PIECES,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "num_labels": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def spread(model: Any, gain: float = 9.0) -> None:
    """Scale weights so that scores differ between pairs by whole units, as a trained reranker's do."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and "embed" not in name:
                value.mul_(10 * gain if len(value) == 1 else gain)  # the last layer has one output
            if name.endswith("bias"):
                value.normal_(0.0, 0.1)


def write_tokenizer(folder: Path, *, is_bert: bool) -> None:
    """Write a tokenizer of single bytes with the special tokens of XLM-R, or of BERT (with token types)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *alphabet]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pair = "<s> $A </s> $B:1 </s>:1" if is_bert else "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "add_prefix_space": True,  # transformers 4 puts its own default over what tokenizer.json says
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"][:: 1 if is_bert else 2],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def change_config(folder: Path, **changes: Any) -> None:
    """Change entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_more_is_kept_for_less_drift(exported: Callable[[str, float], Variant]) -> None:
    """Check that a limit below what was measured is kept, by leaving more layers as they are; exported(name, limit)."""
    loose = exported("loose", 99.0)
    assert loose.verification is not None
    limit = 0.7 * loose.verification.max_difference
    tight = exported("tight", limit)
    assert loose.quantization is not None
    assert tight.quantization is not None
    assert tight.verification is not None
    assert len(tight.quantization.kept) > len(loose.quantization.kept)
    assert tight.verification.max_difference <= limit
