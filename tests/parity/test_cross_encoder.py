"""Both CrossEncoders side by side on the tiny trained checkpoint: the same calls, scores, orders and result types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt.compat import CrossEncoder

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch", reason="needs the export extra")
theirs = pytest.importorskip("sentence_transformers", "6", reason="needs sentence-transformers 6")

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"
QUERY = "what is panda?"
DOCUMENTS = [
    "The giant panda is a bear species endemic to China.",
    "hi",
    "",
    "Paris is the capital of France. " * 60,
    "Der Große Panda ist eine Bärenart.",
]
PAIRS = [[QUERY, document] for document in DOCUMENTS] + [["", "no query"], [DOCUMENTS[3], DOCUMENTS[0]]]
# fp32: padding and the order of sums differ. The checkpoint's logits are around 10.
CLOSE: Any = {"atol": 1e-4, "rtol": 0}
CALLS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one a batch": {"batch_size": 1},
    "a prompt": {"prompt": "Search the web: "},
    "a prompt by its name": {"prompt_name": "law"},
    "no prompt": {"prompt": ""},
    "logits": {"activation_fn": torch.nn.Identity()},
    "another activation": {"activation_fn": torch.nn.Tanh()},
    "a function of tensors": {"activation_fn": lambda logits: torch.relu(logits) + 1},
    "softmax of one label": {"apply_softmax": True},
    "a tensor": {"convert_to_tensor": True},
    "a list of tensors": {"convert_to_numpy": False},
    "where it is": {"device": "cpu"},
    "shorter rows": {"processing_kwargs": {"text": {"max_length": 24, "truncation": True}}},
}


@pytest.fixture(scope="module", params=["bare", "with prompts"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, and the one that sentence-transformers saves of it with prompts and an activation."""
    if request.param == "bare":
        return CHECKPOINT
    saved = tmp_path_factory.mktemp("saved") / "checkpoint"
    theirs.CrossEncoder(
        str(CHECKPOINT),
        prompts={"web": "Find pages: ", "law": "Find judgments: "},
        default_prompt_name="web",
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": "float32"},
        device="cpu",
    ).save_pretrained(str(saved), create_model_card=False)
    return saved


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, CrossEncoder]]:
    from rankrt_export.pipeline import Options, export

    artifact = tmp_path_factory.mktemp("artifact") / "tiny"
    export(str(checkpoint), artifact, Options(precisions=("fp32",)))
    options: dict[str, Any] = {"device": "cpu", "model_kwargs": {"dtype": "float32"}}
    if checkpoint is CHECKPOINT:
        options["prompts"] = {"law": "Find judgments: "}
    yield theirs.CrossEncoder(str(checkpoint), **options), CrossEncoder(str(artifact), **options)


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS.keys())
def test_predictions_are_theirs(both: tuple[Any, CrossEncoder], options: dict[str, Any]):
    expected, found = (model.predict(PAIRS, **options) for model in both)
    assert type(found) is type(expected)
    assert [(type(score), score.dtype, score.shape) for score in found] == [
        (type(score), score.dtype, score.shape) for score in expected
    ]
    np.testing.assert_allclose([float(score) for score in found], [float(score) for score in expected], **CLOSE)


@pytest.mark.parametrize(
    "options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}], ids=["array", "tensor", "list"]
)
@pytest.mark.parametrize("make", [tuple, list, np.array])
def test_one_pair_alone_is_theirs(both: tuple[Any, CrossEncoder], make: Any, options: dict[str, Any]):
    expected, found = (model.predict(make(PAIRS[0]), **options) for model in both)
    assert (type(found), found.dtype, found.shape) == (type(expected), expected.dtype, expected.shape)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}])
@pytest.mark.parametrize("none", [[], (), np.array([], dtype=str)], ids=["list", "tuple", "array"])
def test_no_pairs_give_what_they_give(both: tuple[Any, CrossEncoder], none: Any, options: dict[str, Any]):
    expected, found = (model.predict(none, **options) for model in both)
    assert (type(found), len(found)) == (type(expected), 0)


def test_containers_are_read_as_there(both: tuple[Any, CrossEncoder]):
    datasets = pytest.importorskip("datasets", reason="needs the extra finetune")
    column = datasets.Dataset.from_dict({"pair": PAIRS})["pair"]
    for container in (tuple(PAIRS), np.array(PAIRS), np.array(PAIRS, dtype=object), column):
        expected, found = (model.predict(container) for model in both)
        np.testing.assert_allclose(found, expected, **CLOSE)
    for given in (PAIRS, PAIRS[0], tuple(PAIRS[0]), [], np.array([]), np.array(PAIRS), np.array(PAIRS[0])):
        assert both[1].is_singular_input(given) == (both[0].is_singular_input(given) and len(given) > 0)


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 2}, {"top_k": 99, "return_documents": True}, {"prompt_name": "law"}, {"activation_fn": abs}],
    ids=["plain", "the best", "with documents", "with a prompt", "with an activation"],
)
def test_rankings_are_theirs(both: tuple[Any, CrossEncoder], options: dict[str, Any]):
    expected, found = (model.rank(QUERY, DOCUMENTS, **options) for model in both)
    assert [hit.keys() for hit in found] == [hit.keys() for hit in expected]
    assert [(hit["corpus_id"], hit.get("text")) for hit in found] == [
        (hit["corpus_id"], hit.get("text")) for hit in expected
    ]
    assert {type(hit["score"]) for hit in found} == {float}
    np.testing.assert_allclose([hit["score"] for hit in found], [hit["score"] for hit in expected], **CLOSE)
    assert json.loads(json.dumps(found)) == found


def test_no_documents_and_shorter_pairs_are_theirs(both: tuple[Any, CrossEncoder]):
    assert [model.rank(QUERY, []) for model in both] == [[], []]
    short = []
    for model in both:
        before, model.max_seq_length = model.max_seq_length, 24
        short.append(model.predict(PAIRS))
        model.max_seq_length = before
    assert both[0].max_seq_length == both[1].max_seq_length
    np.testing.assert_allclose(short[1], short[0], **CLOSE)


def test_what_they_are_asked_about_themselves_is_the_same(both: tuple[Any, CrossEncoder]):
    for name in ("num_labels", "default_prompt_name", "max_seq_length"):
        assert getattr(both[0], name) == getattr(both[1], name), name
    assert str(both[0].device) == both[1].device
    assert {key: text for key, text in both[0].prompts.items() if text} == both[1].prompts


@pytest.mark.parametrize("options", [{"prompt_name": "missing"}, {"batch_size": 0}], ids=["prompt", "batch"])
def test_both_refuse(both: tuple[Any, CrossEncoder], options: dict[str, Any]):
    for model in both:
        with pytest.raises(ValueError, match=r"missing|batch_size"):
            model.predict(PAIRS, **options)
