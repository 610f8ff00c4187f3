"""FlagEmbedding's ids and logits of the LLM rerankers, pair by pair, on real text in twelve languages."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.compat import FlagLLMReranker, LayerWiseFlagLLMReranker, LightWeightFlagLLMReranker
from rankrt.text.pairs import Pair
from rankrt_export.pipeline import Options, export
from tests.export.decoders import make_lightweight
from tests.export.flagembedding import lightweight, rows_given_to

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]
Checkpoints = Callable[[str], Path]
CUTOFFS = [8, 10, 11, 12]
# FlagEmbedding computes 256,000 logits for every token of Gemma: 400 MB for a batch of two.
N_GEMMA_PAIRS, N_LAYERWISE_PAIRS, N_LIGHTWEIGHT_PAIRS, BATCH_SIZE = 120, 1000, 500, 2


@pytest.fixture(scope="module")
def decoder_only() -> Any:
    return pytest.importorskip(
        "FlagEmbedding.inference.reranker.decoder_only", reason="needs FlagEmbedding 1.4.2 (it pins transformers)"
    )


@pytest.fixture(scope="module")
def layerwise(checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory, decoder_only: Any) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("layerwise") / "artifact"
    export(str(checkpoint("bge-reranker-v2-minicpm-layerwise")), folder, Options(cutoff_layers=CUTOFFS))
    yield folder


class Recorded:
    """FlagEmbedding's reranker, and the rows that its model was given."""

    def __init__(self, reranker: Any) -> None:
        # The tokenizer that stands in for the models' own has no token to pad with.
        reranker.tokenizer.pad_token = reranker.tokenizer.pad_token or "</s>"
        reranker.model.config.use_cache = False
        self.reranker = reranker
        self.rows: set[tuple[int, ...]] = set()
        self._forward = reranker.model.forward
        reranker.model.forward = self._record

    def _record(self, **inputs: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
            self.rows.add(tuple(id_ for id_, is_token in zip(ids, mask, strict=True) if is_token))
        return self._forward(**inputs)


def spread_over(pairs: list[Pair], n: int) -> list[Pair]:
    """Take pairs evenly from all languages."""
    return pairs[:: max(1, len(pairs) // n)][:n]


def rows_of(reranker: Reranker, pairs: list[Pair]) -> set[tuple[int, ...]]:
    encoded = reranker.encode(pairs)
    return {tuple(encoded.row(i).tolist()) for i in range(encoded.n_rows)}


@pytest.mark.parametrize("max_length", [512, 96])
def test_gemma(checkpoint: Checkpoints, decoder_only: Any, pairs: list[Pair], max_length: int):
    folder, few = str(checkpoint("bge-reranker-v2-gemma")), spread_over(pairs, N_GEMMA_PAIRS)
    theirs = Recorded(decoder_only.FlagLLMReranker(folder, devices="cpu", batch_size=BATCH_SIZE))
    expected = theirs.reranker.compute_score([list(pair) for pair in few], max_length=max_length)
    with Reranker.load(folder, max_length=max_length) as reranker:
        assert rows_of(reranker, few) == theirs.rows
    # fp32: padding and the order of summation differ.
    ours = FlagLLMReranker(folder).compute_score(few, max_length=max_length)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_length", [512, 96])
def test_minicpm_at_every_cutoff(
    checkpoint: Checkpoints, layerwise: Path, decoder_only: Any, pairs: list[Pair], max_length: int
):
    folder, many = str(checkpoint("bge-reranker-v2-minicpm-layerwise")), spread_over(pairs, N_LAYERWISE_PAIRS)
    theirs = Recorded(
        decoder_only.LayerWiseFlagLLMReranker(folder, devices="cpu", batch_size=16, cutoff_layers=CUTOFFS)
    )
    expected = theirs.reranker.compute_score([list(pair) for pair in many], max_length=max_length)
    with Reranker.load(layerwise, max_length=max_length) as reranker:
        assert rows_of(reranker, many) == theirs.rows
    ours = LayerWiseFlagLLMReranker(str(layerwise), cutoff_layers=CUTOFFS[::-1]).compute_score(
        many, max_length=max_length
    )
    # fp32: padding and the order of summation differ.
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_another_question_and_no_instructions(
    layerwise: Path, checkpoint: Checkpoints, decoder_only: Any, pairs: list[Pair]
):
    options: dict[str, Any] = {
        "query_instruction_for_rerank": None,
        "passage_instruction_for_rerank": "P",
        "passage_instruction_format": r"{}:\n{}",
        "prompt": "Is this about that?",
        "cutoff_layers": [8],
    }
    folder, few = str(checkpoint("bge-reranker-v2-minicpm-layerwise")), spread_over(pairs, 40)
    theirs = Recorded(decoder_only.LayerWiseFlagLLMReranker(folder, devices="cpu", batch_size=16, **options))
    expected = theirs.reranker.compute_score([list(pair) for pair in few])
    ours = LayerWiseFlagLLMReranker(str(layerwise), **options)
    assert rows_of(ours._reranker, few) == theirs.rows
    np.testing.assert_allclose(ours.compute_score(few), expected, atol=1e-4, rtol=0)


def test_lightweight_with_compressed_passages(
    checkpoint: Checkpoints, decoder_only: Any, pairs: list[Pair], tmp_path: Path
):
    """A random model of FlagEmbedding's class, with the tokenizer that the tests have for Gemma."""
    base, folder = checkpoint("bge-reranker-v2-gemma"), tmp_path / "lightweight"
    config = json.loads((base / "config.json").read_text())
    ids = {name: config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    make_lightweight(folder, **ids, sliding_window=64)
    for file in base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    way: dict[str, Any] = {"cutoff_layers": [3, 5], "compress_layers": [2, 4], "compress_ratio": 2}
    many = spread_over(pairs, N_LIGHTWEIGHT_PAIRS)
    theirs = lightweight(folder, batch_size=16, max_length=160, **way)
    theirs.tokenizer.pad_token = theirs.tokenizer.pad_token or "</s>"
    rows = rows_given_to(theirs)
    expected = theirs.compute_score([list(pair) for pair in many])
    artifact = export(str(folder), tmp_path / "artifact", Options(**way, is_verified=False)).folder
    with Reranker.load(artifact, precision="fp32", max_length=160) as reranker:
        assert rows_of(reranker, many) == rows
    ours = LightWeightFlagLLMReranker(str(artifact), max_length=160, **way).compute_score(many)
    # fp32: padding and the order of summation differ.
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
