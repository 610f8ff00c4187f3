"""FlagEmbedding's interface: its shapes, its options, and nothing ignored."""

import pytest

from rankrt import DeviceError, InputError
from rankrt.artifact.manifest import Artifact
from rankrt.compat import FlagReranker


@pytest.fixture
def reranker(artifact: Artifact) -> FlagReranker:
    return FlagReranker(str(artifact.folder), use_fp16=True, max_length=64)


def test_one_pair_gives_a_list_of_one_float(reranker: FlagReranker):
    assert reranker.compute_score(["one", "two"]) == [3.0]
    assert reranker.compute_score(("one", "two")) == [3.0]
    assert isinstance(reranker.compute_score(["one", "two"])[0], float)


def test_pairs_give_a_list_in_their_order(reranker: FlagReranker):
    assert reranker.compute_score([["one", "two two"], ("one", "")]) == [5.0, 1.0]
    assert reranker.compute_score([]) == []


def test_an_empty_query_is_scored_as_there(reranker: FlagReranker):
    assert reranker.compute_score(["", "two"]) == [2.0]


def test_normalizing_is_asked_for_in_the_constructor_or_the_call(artifact: Artifact, reranker: FlagReranker):
    normalized = FlagReranker(str(artifact.folder), max_length=64, normalize=True)
    assert normalized.compute_score(["zero", "zero"]) == [0.5]
    assert normalized.compute_score(["zero", "one"], normalize=False) == [1.0]
    assert reranker.compute_score(["zero", "zero"], normalize=True) == [0.5]


def test_lengths_can_be_given_for_a_call(reranker: FlagReranker):
    pair = ["one one one", "two two two two"]
    assert reranker.compute_score(pair) == [11.0]
    assert reranker.compute_score(pair, max_length=8, query_max_length=2) == [2 + 4.0]
    assert reranker.compute_score(pair, batch_size=1) == [11.0]


def test_instructions_come_before_the_texts(artifact: Artifact):
    instructed = FlagReranker(
        str(artifact.folder),
        max_length=64,
        query_instruction_for_rerank="four ",
        passage_instruction_for_rerank="three ",
    )
    assert instructed.compute_score(["one", "two"]) == [10.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passage_max_length": 512}, "passage_max_length has no effect in FlagEmbedding 1.4 .use max_length"),
        ({"device": "cpu"}, "device has no effect in FlagEmbedding 1.4 .use devices"),
        ({"use_bf16": True}, "use_bf16 has no effect"),
        ({"compile": True}, "unknown option compile"),
        ({"trust_remote_code": True}, "rankrt runs no code that comes with a model"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(artifact: Artifact, options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        FlagReranker(str(artifact.folder), max_length=64, **options)  # type: ignore[arg-type]


def test_options_of_a_call_are_checked_too(reranker: FlagReranker):
    with pytest.raises(InputError, match="unknown option return_tensors"):
        reranker.compute_score(["one", "two"], return_tensors="pt")


@pytest.mark.parametrize("devices", ["cpu", ["cpu"], None])
def test_the_cpu_may_be_named(artifact: Artifact, devices: object):
    FlagReranker(str(artifact.folder), max_length=64, devices=devices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "message"), [(["cpu", "cpu"], "one reranker has one device here"), (0, "only 'cpu' can be used so far")]
)
def test_other_devices_are_refused(artifact: Artifact, devices: object, message: str):
    with pytest.raises(DeviceError, match=message):
        FlagReranker(str(artifact.folder), max_length=64, devices=devices)  # type: ignore[arg-type]


def test_what_is_no_pair_is_refused(reranker: FlagReranker):
    with pytest.raises(InputError, match=r"expected pairs \(query, passage\)"):
        reranker.compute_score([["one", "two", "three"]])


def test_stopping_the_pool_does_nothing(reranker: FlagReranker):
    reranker.stop_self_pool()
    assert reranker.compute_score(["one", "two"]) == [3.0]
