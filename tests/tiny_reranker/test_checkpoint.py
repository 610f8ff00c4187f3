"""The checkpoint that is committed: small, loadable by anybody, really ranking, and as good as its card says."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the export extra: pip install 'rankrt[export]'")

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankrt import Reranker
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample

pytestmark = pytest.mark.export
FOLDER = Path(__file__).resolve().parents[2] / "tiny_reranker"
CHECKPOINT = FOLDER / "checkpoint"
# What a float32 sum of a thousand terms may differ by in another order, for logits of this size.
FP32_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    artifact = export(str(CHECKPOINT), tmp_path_factory.mktemp("tiny") / "artifact", Options(precisions=["fp32"]))
    return Reranker.load(artifact.folder, prepare=False)


def test_it_is_at_most_8_mb():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 8e6


def test_it_ranks_the_right_passage_first_in_most_languages(reranker: Reranker):
    questions = sample().questions
    n_right = sum(reranker.rank(q.query, sorted(q.passages), top_n=1)[0].document in q.pos for q in questions)
    # Eight passages each: chance is an eighth.
    assert n_right >= 0.7 * len(questions)


def test_its_scores_are_pytorch_s_through_transformers_own_tokenizer(reranker: Reranker):
    pairs = sample().pairs[:40]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForSequenceClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    rows = [tokenizer(*pair, truncation=True, max_length=512, return_tensors="pt") for pair in pairs]
    with torch.inference_mode():
        reference = [model(**row).logits[0, 0].item() for row in rows]
    scores = reranker.with_rules(truncation="longest_first").score(pairs)
    assert np.abs(scores - reference).max() < FP32_DIFFERENCE


def test_it_is_worth_what_the_recipe_promised():
    means = json.loads((FOLDER / "evaluation.json").read_text())["quality"]["mean"]
    assert means["model"]["ndcg"] > 0.9
    assert means["random"]["ndcg"] < 0.3
