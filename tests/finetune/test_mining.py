"""Negatives from a corpus: found by words or by vectors, never an answer, and ordered and excluded by scores."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from rankrt_finetune.bm25 import words
from rankrt_finetune.mining.bm25 import Bm25
from rankrt_finetune.mining.found import best
from rankrt_finetune.mining.mine import Choice, mine
from tests.finetune.conftest import TOPICS, write_bert, write_lines

CORPUS = ["one two", "one three", "one four", "One  TWO", "two two two", "three four", "one one zero"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in CORPUS])


def mined(tmp_path: Path, corpus: Path, examples: list[dict[str, Any]], choice: Choice, **more: Any) -> list[Any]:
    source, out = write_lines(tmp_path / "train.jsonl", examples), tmp_path / "mined.jsonl"
    out.unlink(missing_ok=True)
    mine(source, corpus, out, choice, **more)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_words_are_in_lower_case_and_scripts_without_spaces_give_pairs():
    assert words("Panda's  BEAR_2, naïve") == ["panda", "s", "bear_2", "naïve"]
    assert words("熊猫是什么 abc熊") == ["熊猫", "猫是", "是什", "什么", "abc", "熊"]


def test_the_best_are_in_order_and_equals_keep_theirs():
    scores = np.array([1, 3, 2, 3, 2, 2], np.float32)
    assert best(scores, 4).tolist() == [1, 3, 2, 4]
    assert best(scores, 9).tolist() == np.argsort(-scores, kind="stable").tolist()


def test_bm25_finds_what_shares_words_only():
    (found, nothing) = Bm25(["a panda is a bear", "cars drive", "panda panda"]).find(["PANDA?", "xyz"], 5)
    assert found.passages.tolist() == [2, 0]
    assert nothing.passages.tolist() == []


def test_answers_and_negatives_that_are_there_are_not_mined_again(tmp_path: Path, corpus: Path):
    examples: list[dict[str, Any]] = [
        {"query": "one", "pos": ["one two"], "neg": ["one three"], "pos_scores": [1], "neg_scores": [0], "id": 3},
        {"query": "ONE", "pos": ["one four"], "neg": []},
    ]
    first, second = mined(tmp_path, corpus, examples, Choice())
    # Positives of both lines are left out, in any case; so are scores, which would no longer fit.
    assert first == {"query": "one", "pos": ["one two"], "neg": ["one three", "one one zero"], "id": 3}
    assert sorted(second["neg"]) == ["one one zero", "one three"]


def test_ranks_are_a_range_and_drawing_repeats(tmp_path: Path, corpus: Path):
    example = [{"query": "one", "pos": ["three four"], "neg": []}]
    (everything,) = (row["neg"] for row in mined(tmp_path, corpus, example, Choice()))
    assert len(everything) == 4  # "One  TWO" is a text of the corpus twice
    (later,) = (row["neg"] for row in mined(tmp_path, corpus, example, Choice(first=2, last=3)))
    assert later == everything[1:3]
    draws = [
        mined(tmp_path, corpus, example, Choice(n_negatives=2, pick="random", seed=s))[0]["neg"] for s in (1, 1, 2, 3)
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1


def test_a_reranker_orders_what_is_found_and_its_logits_are_written(tmp_path: Path, corpus: Path, reranker: Reranker):
    example = [{"query": "one", "pos": ["three four"], "neg": []}]
    (row,) = mined(tmp_path, corpus, example, Choice(n_negatives=3), judge=reranker)
    # A score is the sum of the points of all words, the query's one counted.
    assert row["neg"] == ["one four", "one three", "one two"]
    assert (row["pos_scores"], row["neg_scores"]) == ([8.0], [6.0, 5.0, 4.0])


def test_scores_exclude_what_may_be_an_answer(tmp_path: Path, corpus: Path, reranker: Reranker):
    example = [{"query": "one", "pos": ["zero two"], "neg": []}]  # its logit is 3: sigmoid 0.953

    def negatives(**limits: float) -> list[str]:
        found: list[str] = mined(tmp_path, corpus, example, Choice(**limits), judge=reranker)[0]["neg"]  # type: ignore[arg-type]
        return found

    assert len(negatives()) == 4
    assert negatives(max_score=0.96) == ["one one zero"]  # logit 3; "one two" has 4: 0.982
    assert negatives(margin=0.0) == ["one one zero"]
    assert negatives(margin=0.01) == []
    assert negatives(relative_margin=0.01) == []


def test_bm25_alone_cannot_exclude_by_score(tmp_path: Path, corpus: Path):
    with pytest.raises(InputError, match="need scores from 0 to 1, which bm25 alone does not give"):
        mined(tmp_path, corpus, [{"query": "one", "pos": ["two"], "neg": []}], Choice(margin=0.1))


def test_an_embedder_finds_the_nearest_by_cosine(tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    model = str(write_bert(tmp_path / "embedder", is_embedder=True))
    texts = [f"about {topic} word{i}" for topic in TOPICS for i in range(4)]
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    examples = [{"query": "about bears", "pos": ["bears word1"], "neg": []}]
    (row,) = mined(tmp_path, corpus, examples, Choice(n_negatives=24), embedder=model)
    reference = SentenceTransformer(model)
    query, vectors = (reference.encode(text, normalize_embeddings=True) for text in ("about bears", texts))
    similarity = dict(zip(texts, vectors @ query, strict=True))
    assert sorted(row["neg"]) == sorted(texts)
    # Vectors of a batch differ in the last bits from those of a single text.
    values = [similarity[text] for text in row["neg"]]
    assert all(a >= b - 1e-6 for a, b in pairwise(values))
    bar = float(np.sort(values)[12])
    (row,) = mined(tmp_path, corpus, examples, Choice(n_negatives=24, max_score=bar), embedder=model)
    assert 0 < len(row["neg"]) <= 13


def test_the_command_mines_and_says_what_is_missing(
    tmp_path: Path, corpus: Path, artifact: Artifact, capsys: pytest.CaptureFixture[str]
):
    train, out = write_lines(tmp_path / "t.jsonl", [{"query": "four", "pos": ["two"], "neg": []}]), tmp_path / "m.jsonl"
    command = ["mine", str(train), "--corpus", str(corpus), "--with", "bm25", str(artifact.folder), "-o", str(out)]
    assert main([*command, "--max-score", "0.99", "--negatives", "5"]) == 0
    assert "1 of 1 queries got fewer than 5 negatives" in capsys.readouterr().err
    assert json.loads(out.read_text())["neg"] == []  # "one four" and "three four" with "four" are above 0.99
    assert main(command) == 1
    assert "m.jsonl exists" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "new"), "--range", "9-3"]) == 2
    assert main([*command[:-1], str(tmp_path / "new"), "--with", "bm25", "other"]) == 1
    assert "give one search" in capsys.readouterr().err
