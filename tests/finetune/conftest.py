"""Tiny checkpoints and examples that a few training steps can learn."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

torch = pytest.importorskip("torch", reason="needs the finetune extra")
transformers = pytest.importorskip("transformers", reason="needs the finetune extra")
pytest.importorskip("sentence_transformers", reason="needs the finetune extra")

# For products this small, threads wait for each other longer than they compute; those of other processes share the
# processors. A run takes a second of one.
torch.set_num_threads(1)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TOPICS = ["bears", "cars", "trees", "fish", "stars", "ships"]
FILLERS = [f"word{i}" for i in range(24)]
# What a model can learn in seconds: passages that answer have one of these words.
ANSWERS, OTHERS = ["truly", "indeed"], ["perhaps", "never"]
WORDS = [*SPECIAL, "about", *TOPICS, *FILLERS, *ANSWERS, *OTHERS]


def write_bert(folder: Path, *, is_embedder: bool = False, seed: int = 0, **changes: Any) -> Path:
    """Write a random BERT of words: a cross-encoder, or the model of an embedder."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "num_labels": 1,
        "pad_token_id": 0,
    }
    kind = "AutoModel" if is_embedder else "AutoModelForSequenceClassification"
    getattr(transformers, kind).from_config(transformers.BertConfig(**(shape | changes))).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def passage(random: Random, word: str) -> str:
    return " ".join([*random.sample(FILLERS, 4), word])


def rows(n: int, *, seed: int = 0, n_negatives: int = 3, **more: Any) -> list[dict[str, Any]]:
    """Return examples whose positives have a word of ANSWERS and whose negatives have one of OTHERS."""
    random = Random(seed)
    return [
        {
            "query": f"about {random.choice(TOPICS)} {' '.join(random.sample(FILLERS, 3))}",
            "pos": [passage(random, random.choice(ANSWERS))],
            "neg": [passage(random, random.choice(OTHERS)) for _ in range(n_negatives)],
        }
        | more
        for _ in range(n)
    ]


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
