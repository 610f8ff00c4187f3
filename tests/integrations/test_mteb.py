"""mteb evaluates a reranker of ours on its own mock task. Needs torch, which mteb imports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact

pytest.importorskip("torch", reason="mteb needs torch")
mteb: Any = pytest.importorskip("mteb", reason="mteb is not installed")
from rankrt.integrations.mteb import MtebReranker  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def task() -> Any:
    mocks = pytest.importorskip("mteb.mocks.mock_tasks.reranking", reason="this release of mteb has no mock tasks")
    return mocks.MockRerankingTask()


def test_it_is_a_cross_encoder_to_mteb(reranker: Reranker):
    model = MtebReranker(reranker)
    assert isinstance(model, mteb.CrossEncoderProtocol)
    assert model.mteb_model_meta.name == "rankrt/tiny-cpu-fp32"
    assert model.mteb_model_meta.revision == reranker.artifact.identity[:16]
    assert MtebReranker(reranker, name="me/mine").mteb_model_meta.name == "me/mine"


def test_mteb_ranks_by_its_scores(reranker: Reranker, task: Any, tmp_path: Path):
    results = mteb.evaluate(
        MtebReranker(reranker), task, cache=None, prediction_folder=tmp_path, show_progress_bar=False
    )
    assert results[0].task_name == task.metadata.name
    (file,) = tmp_path.rglob("*predictions.json")
    predictions = json.loads(file.read_text())["default"]["test"]
    task.load_data()  # it was unloaded after the evaluation
    data = task.dataset["default"]["test"]
    queries, corpus = (dict(zip(data[part]["id"], data[part]["text"], strict=True)) for part in ("queries", "corpus"))
    for query, scores in predictions.items():
        for document, score in scores.items():
            assert score == reranker.score([(queries[query], corpus[document])])[0]


def test_batches_of_texts_give_an_array(reranker: Reranker, artifact: Artifact):
    queries, documents = [{"text": ["one", "four"]}, {"text": ["one"]}], [{"text": ["two"]}, {"text": ["two", "three"]}]
    scores = MtebReranker(reranker).predict(
        queries, documents, task_metadata=None, hf_split="test", hf_subset="default"
    )
    assert (type(scores), scores.tolist()) == (np.ndarray, [3.0, 6.0, 4.0])
    assert MtebReranker(reranker).predict([], []).shape == (0,)
    own = MtebReranker(str(artifact.folder), None, "cpu", max_length=32)
    assert own.reranker.rules.max_length == 32


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": [b""]}, "a batch has image and no text, which is all that a reranker here reads"),
        ({"text": [None]}, "a text of a batch is NoneType, not str"),
    ],
)
def test_other_than_text_is_refused(reranker: Reranker, batch: Any, message: str):
    with pytest.raises(InputError, match=message):
        MtebReranker(reranker).predict([{"text": ["one"]}], [batch])
