"""int8 of a pretrained encoder, which has what training leaves in weights: outlier channels, and tokens that take all.

The weights are all-MiniLM-L6-v2's. A ranking head is fitted on the sample's questions, in closed form.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import PRECISIONS
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from tests.export.conftest import torch, transformers
from tests.parity.test_encoders import add_tokenizer

pytestmark = pytest.mark.export

# Of the squares of the weights, beside those of the errors: without it 111 pairs are fitted exactly by 384 features.
DAMPING = 1.0


@pytest.fixture(scope="module")
def artifact(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The pretrained encoder with a head, at the default limits."""
    folder = tmp_path_factory.mktemp("minilm")
    model = transformers.BertForSequenceClassification.from_pretrained(minilm, num_labels=1).eval()
    fit_head(model, transformers.AutoTokenizer.from_pretrained(minilm))
    model.save_pretrained(folder / "checkpoint")
    add_tokenizer(minilm, folder / "checkpoint", has_token_types=True)
    return export(str(folder / "checkpoint"), folder / "artifact", Options(precisions=["fp32", "int8"]))


def fit_head(model: Any, tokenizer: Any) -> None:
    """Let the classifier give 4 to passages that answer and -4 to others, as far as the first token's states tell."""
    questions = sample().questions
    labels = [4.0 if i < len(q.pos) else -4.0 for q in questions for i in range(len(q.passages))]
    with torch.inference_mode():
        rows = [tokenizer(*pair, truncation=True, max_length=160, return_tensors="pt") for pair in sample().pairs]
        seen = torch.cat([model.bert(**row).pooler_output for row in rows]).double().numpy()
    centre, middle = seen.mean(axis=0), np.mean(labels)
    moved = seen - centre
    weight = np.linalg.solve(moved.T @ moved + DAMPING * np.eye(len(centre)), moved.T @ (np.array(labels) - middle))
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(weight[None]))
        model.classifier.bias.copy_(torch.tensor([middle - centre @ weight]))


def test_both_graphs_are_within_the_default_limits(artifact: Artifact):
    limits = PRECISIONS["int8"]
    found = [variant for variant in artifact.manifest.variants if variant.precision == "int8"]
    assert {variant.instruction_set for variant in found} == {"avx2", "vnni"}
    for variant in found:
        assert variant.verification is not None
        assert variant.verification.max_difference <= limits.max_difference
        assert variant.verification.mean_tau >= limits.min_tau
        assert variant.quantization is not None
        assert variant.quantization.int8_share > 0.4


def test_answers_stay_where_they_are(artifact: Artifact):
    """A question's best passage is still the best, if it leads by more than the drift that is allowed."""
    with (
        Reranker.load(artifact.folder, precision="fp32") as exact,
        Reranker.load(artifact.folder, precision="int8") as rounded,
    ):
        for question in sample().questions:
            pairs = [(question.query, passage) for passage in question.passages]
            scores = exact.score(pairs)
            if len(pairs) > 1 and np.diff(np.sort(scores)[-2:])[0] > 0.25:
                assert np.argmax(rounded.score(pairs)) == np.argmax(scores)
