"""FlagEmbedding's and transformers' ids and logits, pair by pair, on real text in twelve languages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rankrt import Reranker
from rankrt.compat import FlagReranker
from rankrt.text.pairs import Pair

pytestmark = pytest.mark.export

MODELS = ["bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3"]
Checkpoints = Callable[[str], Path]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def flag_reranker(checkpoint: Checkpoints, model: str) -> Any:
    module = pytest.importorskip(
        "FlagEmbedding.inference.reranker.encoder_only.base", reason="needs FlagEmbedding 1.4.2 (it pins transformers)"
    )
    return module.BaseReranker(str(checkpoint(model)), devices="cpu")


@pytest.fixture
def reranker(checkpoint: Checkpoints, model: str) -> Iterator[Reranker]:
    with Reranker.load(checkpoint(model)) as loaded:
        yield loaded


def test_there_are_enough_pairs(pairs: list[Pair]):
    assert len(pairs) >= 2000


@pytest.mark.parametrize("max_length", [512, 96])
@pytest.mark.filterwarnings("ignore")
def test_ids_and_logits_are_those_of_flagembedding(
    checkpoint: Checkpoints, model: str, flag_reranker: Any, reranker: Reranker, pairs: list[Pair], max_length: int
):
    seen: set[tuple[int, ...]] = set()
    forward = flag_reranker.model.forward

    def record(**inputs: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
            seen.add(tuple(ids[: sum(mask)]))
        return forward(**inputs)

    flag_reranker.model.forward = record
    expected = flag_reranker.compute_score([list(pair) for pair in pairs], max_length=max_length)
    encoded = reranker.with_rules(max_length=max_length).encode(pairs)
    assert {tuple(encoded.row(i).tolist()) for i in range(encoded.n_rows)} == seen
    ours = FlagReranker(str(checkpoint(model))).compute_score(pairs, max_length=max_length)
    # fp32: padding and the order of summation differ.
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_length", [512, 96])
def test_ids_are_those_of_transformers_with_longest_first(
    checkpoint: Checkpoints, model: str, reranker: Reranker, pairs: list[Pair], max_length: int
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint(model))
    expected = tokenizer(pairs, truncation=True, max_length=max_length)["input_ids"]
    encoded = reranker.with_rules(max_length=max_length, truncation="longest_first").encode(pairs)
    assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == expected


def test_logits_are_those_of_transformers_row_by_row(
    checkpoint: Checkpoints, model: str, reranker: Reranker, pairs: list[Pair]
):
    import torch
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(checkpoint(model), dtype=torch.float32).eval()
    cut = reranker.with_rules(truncation="longest_first")
    encoded = cut.encode(pairs)
    with torch.inference_mode():
        rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
        expected = [network(row).logits[0, 0].item() for row in rows]
    # fp32: only the order of summation differs.
    np.testing.assert_allclose(cut.score(pairs), expected, atol=1e-4, rtol=0)


def test_heads_of_long_texts_have_the_tokens_of_the_whole(reranker: Reranker, shared: Path):
    novels = [path.read_text(encoding="utf-8") for path in sorted((shared / "data" / "long-text").glob("*.txt"))]
    queries = ["what did he say?", "彼は何と言いましたか"]
    encoded = reranker.encode([(query, novel) for query in queries for novel in novels])
    tokenizer = Tokenizer.from_file(str(reranker.artifact.path(reranker.artifact.manifest.tokenizer)))
    for i, novel in enumerate(novels * len(queries)):
        whole = tokenizer.encode(novel, add_special_tokens=False).ids
        kept = encoded.row(i)[encoded.passage_starts[i] : -1].tolist()
        assert kept == whole[: len(kept)]
        assert encoded.truncated[i]
