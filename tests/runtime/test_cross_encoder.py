"""sentence-transformers' interface: its shapes and options. tests/parity has both classes side by side."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rankrt import DeviceError, InputError, Reranker
from rankrt.artifact.manifest import Artifact, Prompt, Score, open_artifact, write_manifest
from rankrt.compat import CrossEncoder
from rankrt.scoring import sigmoid
from tests.support import tiny_artifact

PAIRS = [("one", "two two"), ["one", ""], ("four", "three")]
LOGITS = [5.0, 1.0, 7.0]
PROMPT = Prompt(
    query_instruction="three ",
    query_format="{}{}",
    passage_instruction="",
    passage_format="{}{}",
    question=None,
    instructed_format="{}{}",
    instructions={"web": "three ", "law": "four "},
)


def changed(artifact: Artifact, prompt: Prompt | None = None, **changes: Any) -> Path:
    """Change the manifest of an artifact."""
    template = msgspec.structs.replace(artifact.manifest.template, prompt=prompt)
    manifest = msgspec.structs.replace(artifact.manifest, template=template, **changes)
    write_manifest(manifest, artifact.folder)
    return open_artifact(artifact.folder).folder


@pytest.fixture
def model(artifact: Artifact) -> CrossEncoder:
    return CrossEncoder(str(changed(artifact, score=Score(activation="identity"))))


def test_pairs_give_an_array_in_their_order(model: CrossEncoder):
    scores = model.predict(PAIRS)
    assert (scores.dtype, scores.tolist()) == (np.float32, LOGITS)
    assert model.predict(np.array([list(pair) for pair in PAIRS])).tolist() == LOGITS
    assert model.predict(tuple(PAIRS)).tolist() == LOGITS
    assert model.predict([]).shape == model.predict(np.array([], dtype=str)).shape == (0,)


@pytest.mark.parametrize("pair", [("one", "two"), ["one", "two"], np.array(["one", "two"])])
def test_one_pair_gives_a_number(model: CrossEncoder, pair: Any):
    score = model.predict(pair)
    assert isinstance(score, np.float32)
    assert score == 3.0


def test_ranking_gives_dicts_best_first(model: CrossEncoder):
    documents = ["one", "three", "zero", "three"]
    assert model.rank("one", documents, top_k=3) == [
        {"corpus_id": 1, "score": 4.0},
        {"corpus_id": 3, "score": 4.0},
        {"corpus_id": 0, "score": 2.0},
    ]
    (hit,) = model.rank("one", documents, top_k=1, return_documents=True)
    assert hit == {"corpus_id": 1, "score": 4.0, "text": "three"}
    assert type(hit["score"]) is float
    assert model.rank("one", []) == []


def test_scores_go_through_what_the_checkpoint_says_or_else_the_sigmoid(artifact: Artifact):
    expected = sigmoid(np.array(LOGITS, np.float32)).tolist()
    for said in (None, "sigmoid"):
        folder = str(changed(artifact, score=Score(activation=said)))
        assert CrossEncoder(folder).predict(PAIRS).tolist() == expected
        assert CrossEncoder(folder, activation_fn=lambda x: x).predict(PAIRS).tolist() == LOGITS
        assert CrossEncoder(folder).predict(PAIRS, activation_fn=lambda x: 2 * x).tolist() == [10, 2, 14]


def test_an_artifact_that_does_not_say_needs_an_activation(artifact: Artifact):
    model = CrossEncoder(str(artifact.folder))
    with pytest.raises(InputError, match="older than version 4 of the format and does not say"):
        model.predict(PAIRS)
    assert model.predict(PAIRS, activation_fn=lambda x: x).tolist() == LOGITS


def test_an_activation_that_mixes_pairs_is_refused(model: CrossEncoder):
    with pytest.raises(InputError, match=r"made shape \(\) of logits of shape \(3, 1\)"):
        model.predict(PAIRS, activation_fn=lambda x: x.sum())


def test_a_loaded_reranker_brings_its_own_rules_and_precision(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "both", precisions=("fp32", "int8"))
    with Reranker.load(artifact.folder, precision="int8", max_length=8) as reranker:
        model = CrossEncoder.of(reranker, activation_fn=lambda x: x)
        assert model.max_seq_length == 8
        assert model.predict(PAIRS).tolist() == LOGITS
        assert repr(reranker) in repr(model)


def test_a_prompt_stands_before_the_query(model: CrossEncoder):
    assert model.predict(PAIRS, prompt="four ").tolist() == [9.0, 5.0, 11.0]
    assert model.predict(PAIRS, prompt="").tolist() == LOGITS
    assert model.rank("one", ["two"], prompt="four ")[0]["score"] == 7.0
    with pytest.raises(InputError, match="prompt_name='law' is not one of this model's prompts"):
        model.predict(PAIRS, prompt_name="law")


def test_prompts_are_found_by_name(artifact: Artifact):
    folder = str(changed(artifact, PROMPT, score=Score(activation="identity")))
    model = CrossEncoder(folder)
    assert model.prompts == {"web": "three ", "law": "four "}
    assert model.default_prompt_name == "web"
    assert model.predict(("one", "two")) == 6.0
    assert model.predict(("one", "two"), prompt_name="law") == 7.0
    assert model.predict(("one", "two"), prompt="one one ") == 5.0
    assert model.predict(("one", "two"), prompt="") == 3.0
    own = CrossEncoder(folder, prompts={"mine": "two "}, default_prompt_name="mine")
    assert own.predict(("one", "two")) == 5.0
    assert CrossEncoder(folder, prompts={"web": ""}).predict(("one", "two")) == 3.0
    with pytest.raises(InputError, match="default_prompt_name='yours' is not one of this model's prompts"):
        CrossEncoder(folder, default_prompt_name="yours")


def test_the_length_is_the_model_s_unless_it_is_set(model: CrossEncoder, artifact: Artifact):
    assert model.max_seq_length == model.max_length == 64
    long = ("one one one", "two two two two")
    assert model.predict(long) == 11.0
    model.max_seq_length = 8  # the longer one is cut to two tokens, then both
    assert model.predict(long) == 2 + 4.0
    assert CrossEncoder(str(artifact.folder), max_length=8).predict(long, activation_fn=lambda x: x) == 6.0


def test_a_call_may_be_given_a_length(model: CrossEncoder):
    long = ("one one one", "two two two two")
    assert model.predict(long, processing_kwargs={"text": {"max_length": 8, "truncation": True}}) == 6.0
    assert model.predict(long) == 11.0
    others: list[Any] = [{"text": {"padding": "longest"}}, {"common": {}}, {"text": {"truncation": False}}]
    for other in others:
        with pytest.raises(InputError, match="only the length of a pair can be given here"):
            model.predict(long, processing_kwargs=other)


def test_an_option_without_effect_there_is_warned_of_as_there(model: CrossEncoder, caplog: pytest.LogCaptureFixture):
    assert model.predict(PAIRS, num_workers=2).tolist() == LOGITS
    assert model.rank("one", ["two"], convert_to_tensor=True) == [{"corpus_id": 0, "score": 3.0}]
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "num_workers has no effect in predict",
        "convert_to_tensor has no effect in rank",
    ]


def test_progress_is_shown_if_asked_for(model: CrossEncoder, capsys: pytest.CaptureFixture[str]):
    model.predict(PAIRS)
    assert capsys.readouterr().err == ""
    model.predict(PAIRS, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err


def test_tensors_need_torch(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(InputError, match="convert_to_tensor=True makes tensors, and this program has not imported"):
        model.predict(PAIRS, convert_to_tensor=True)
    with pytest.raises(InputError, match="convert_to_numpy=False makes tensors"):
        model.predict(PAIRS, convert_to_numpy=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "rankrt runs no code that comes with a model"),
        ({"num_labels": 3}, "an artifact has one score for a pair"),
        ({"backend": "openvino"}, "the artifact says how a model runs"),
        ({"processor_kwargs": {"padding_side": "left"}}, "processor_kwargs cannot be honoured: use max_length"),
        ({"model_kwargs": {"attn_implementation": "sdpa"}}, "model_kwargs has 'attn_implementation'"),
        ({"model_kwargs": {"dtype": "bfloat16"}}, "names dtype 'bfloat16', expected one of float32, float16, half"),
        ({"cache_dir": "x"}, "cache_dir was renamed in sentence-transformers; use cache_folder"),
        ({"compile": True}, "unknown option compile"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(artifact: Artifact, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        CrossEncoder(str(artifact.folder), **options)


def test_options_that_are_off_are_taken(artifact: Artifact):
    CrossEncoder(str(artifact.folder), trust_remote_code=False, token=None, num_labels=1, model_kwargs={}, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, expected a whole number of at least 1"),
        ({"device": "cuda"}, "device='cuda', but this model was loaded on cpu"),
        ({"device": ["cpu", "cpu"]}, "start processes there; here threads share one model"),
        ({"pool": {}}, "start processes there"),
        ({"sentences": []}, "sentences was renamed in sentence-transformers; use inputs"),
        ({"padding": True}, "unknown option padding"),
        ({"prompt": 3}, "prompt=3, expected text"),
    ],
)
def test_options_of_a_call_are_checked_too(model: CrossEncoder, options: dict[str, Any], message: str):
    for call in (lambda: model.predict(PAIRS, **options), lambda: model.rank("one", ["two"], **options)):
        with pytest.raises((InputError, DeviceError), match=message):
            call()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one", "pairs is one str, expected a list of pairs"),
        ([("one", "two", "three")], r"expected pairs \(query, passage\)"),
        ([("one", {"image": "x.png"})], "the passage of pair 0 is dict, not str"),
        (["one", "two", "three"], r"expected pairs \(query, passage\)"),
    ],
)
def test_what_is_not_a_pair_of_texts_is_refused(model: CrossEncoder, inputs: Any, message: str):
    with pytest.raises(InputError, match=message):
        model.predict(inputs)


def test_documents_that_are_not_texts_are_refused(model: CrossEncoder):
    with pytest.raises(InputError, match="document 1 is NoneType, not str"):
        model.rank("one", ["two", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"top_k=1\.5, expected a whole number"):
        model.rank("one", ["two"], top_k=1.5)  # type: ignore[arg-type]


def test_it_is_pickled_and_copied_with_its_prompts(artifact: Artifact):
    model = CrossEncoder(str(changed(artifact, score=Score())), prompts={"law": "four "}, default_prompt_name="law")
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.predict(PAIRS).tolist() == model.predict(PAIRS).tolist()
        assert other.default_prompt_name == "law"
