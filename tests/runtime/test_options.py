"""Options: each is honoured or refused by its name, before anything is scored; no inner error comes out."""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rankrt import ArtifactError, InputError, RankrtError, Reranker, Rules, ScoreError
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.source import Hub, find_artifact
from rankrt.compat import FlagReranker
from rankrt.text.options import RuleOptions
from tests.support import POINTS, FakeBackend, tiny_artifact

Call = Callable[[Reranker], object]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, r"Reranker.load has no option 'foo'; it has max_length, "),
        ({"max_lenght": 32}, "Reranker.load has no option 'max_lenght'; did you mean 'max_length'?"),
        ({"threads": 2}, "Reranker.load has no option 'threads'; did you mean 'n_threads'?"),
        ({"cutoff_layers": 2}, "Reranker.load has no option 'cutoff_layers'; did you mean 'cutoff_layer'?"),
    ],
)
def test_an_unknown_option_names_load_and_the_nearest_that_there_is(artifact: Artifact, options: Any, message: str):
    with pytest.raises(TypeError, match=re.escape(message)):
        Reranker.load(artifact.folder, **options)


def test_what_a_type_checker_sees_of_the_rules_is_what_there_is():
    declared = get_type_hints(Rules)
    assert declared.pop("max_length") is int
    assert get_type_hints(RuleOptions) == declared


def test_an_unknown_rule_names_with_rules(reranker: Reranker):
    with pytest.raises(TypeError, match="with_rules has no option 'truncate'; did you mean 'truncation'"):
        reranker.with_rules(truncate=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length=0 cannot hold a pair: 4 tokens of a row are special"),
        ({"max_length": -5}, "max_length=-5 cannot hold a pair"),
        ({"max_length": 32.0}, "max_length=32.0, expected a whole number"),
        ({"max_length": True}, "max_length=True, expected a whole number"),
        ({"max_length": "32"}, "max_length='32', expected a whole number (or None for 512 or the model's limit)"),
        ({"query_max_length": 65}, "query_max_length=65 is more than max_length=64"),
        ({"max_length": 32, "query_max_length": 33}, "query_max_length=33 is more than max_length=32"),
        ({"query_max_length": 0}, "query_max_length=0, expected a whole number of at least 1"),
        ({"passage_max_length": 0}, "passage_max_length=0, expected a whole number of at least 1"),
        ({"n_threads": 1.0}, "n_threads=1.0, expected a whole number of at least 1 (or None for all usable cores)"),
        ({"n_threads": 9_999}, "n_threads=9999, but this host has "),
        ({"device": None}, "device=None, expected text"),
        ({"precision": "fp31"}, "precision='fp31', expected one of 'auto', 'fp32'"),
        ({"precision": None}, "precision=None, expected one of 'auto'"),
        ({"instruction_set": "vnii"}, "did you mean 'vnni'?"),
        ({"revision": "main"}, "revision='main' is a state of a hub repository, but "),
        ({"revision": 3}, "revision=3, expected text (or None for the newest)"),
        ({"cache_dir": 3}, "cache_dir=3, expected a folder"),
        ({"prepare": "no"}, "prepare='no', expected True or False"),
        ({"cutoff_layer": "last"}, "cutoff_layer='last', expected a whole number"),
        ({"cutoff_layer": 2}, "cutoff layers are for layerwise models"),
        (
            {"gpu_memory_gb": 2},
            "gpu_memory_gb is for CUDA only, not for device='auto', which took 'cpu' here; leave it out",
        ),
        ({"gpu_memory_gb": "2"}, "gpu_memory_gb='2', expected more than 0"),
        ({"gpu_memory_gb": float("nan")}, "gpu_memory_gb=nan, expected more than 0"),
        ({"truncation": "longest"}, "expected one of 'only_passage', 'longest_first'; did you mean 'longest_first'?"),
        ({"query_instruction": 3}, "query_instruction=3, expected text"),
        (
            {"query_instruction_format": "{}"},
            "query_instruction_format='{}', expected {} for the instruction, then {} ",
        ),
        ({"passage_instruction_format": "{x}{y}"}, "passage_instruction_format='{x}{y}', expected {} for the instruc"),
        ({"passage_instruction_format": "{}{"}, "passage_instruction_format='{}{', expected {} for the instruction"),
    ],
)
def test_an_option_of_load_is_refused_by_its_name(artifact: Artifact, options: Any, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        Reranker.load(artifact.folder, **options)


@pytest.fixture
def counted(reranker: Reranker) -> Iterator[tuple[Reranker, FakeBackend]]:
    """A reranker whose backend remembers what it was given to score."""
    backend = FakeBackend(reranker._scorer().backend.capacity)
    reranker._model._backends = {reranker.variant.name: backend}
    yield reranker, backend


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.rank("one", ["two"], top_n=2.0), "top_n=2.0, expected a whole number of at least 1"),
        (lambda r: r.rank("one", ["two"], top_n=True), "top_n=True, expected a whole number of at least 1"),
        (lambda r: r.rank("one", ["two"], top_n="3"), "top_n='3', expected a whole number of at least 1"),
        (
            lambda r: r.rank("one", ["two"], top_n=-1),
            "top_n=-1, expected a whole number of at least 1 (or None for all",
        ),
        (lambda r: r.rank("one", ["two"], normalize="yes"), "normalize='yes', expected True or False"),
        (lambda r: r.rank("one", ["two"], refine=True), "refine=True, expected one of 'fp32'"),
        (lambda r: r.rank("one", ["two"], refine="fp16"), "refine needs top_n"),
        (lambda r: r.rank("one", ["two"], top_n=1, refine="fp32"), "cpu-fp32 scores in that precision; drop refine"),
        (lambda r: r.rank("one", ["two"], top_n=1, refine="fp16"), "has no fp16 for cpu"),
        (lambda r: r.rank("one", ["two"], progressive=True), "progressive needs top_n"),
        (lambda r: r.rank("one", ["two"], top_n=1, progressive="yes"), "progressive='yes', expected True, 'exact', or"),
        (lambda r: r.rank("one", ["two"], top_n=1, progressive=None), "progressive=None, expected True"),
        (lambda r: r.rank("one", ["two"], top_n=1, progressive=2), "progressive=2, expected True, 'exact', or a share"),
        (lambda r: r.rank("one", ["two"], top_n=1, progressive=True), "needs a layerwise model"),
        (lambda r: r.score([("one", "two")], normalize=None), "normalize=None, expected True or False"),
        (lambda r: r.score([("one", "two")], cutoff_layers=3), "cutoff_layers=3, expected a list of whole numbers"),
        (lambda r: r.score([("one", "two")], cutoff_layers="12"), "cutoff_layers='12', expected a list of whole"),
        (lambda r: r.score([("one", "two")], cutoff_layers=[1.5]), "cutoff_layers=[1.5], expected a list of whole"),
        (lambda r: r.score([("one", "two")], cutoff_layers=[2]), "cutoff layers are for layerwise models"),
        (lambda r: r.score([("one", "two")] * 5000 + [("", "two")]), "the query is empty"),
    ],
)
def test_an_option_of_a_call_is_refused_before_anything_is_scored(
    counted: tuple[Reranker, FakeBackend], call: Call, message: str
):
    reranker, backend = counted
    with pytest.raises(RankrtError, match=re.escape(message)):
        call(reranker)
    assert backend.asked == []


def test_numpy_s_numbers_and_flags_are_numbers_and_flags(artifact: Artifact):
    whole: Any = np.int64
    with Reranker.load(artifact.folder, max_length=whole(32), n_threads=whole(1)) as reranker:
        yes: Any = np.bool_(True)
        ranking = reranker.rank("zero", ["one", "two"], top_n=whole(1), normalize=yes)
    assert [hit.index for hit in ranking] == [1]
    assert ranking[0].score == pytest.approx(1 / (1 + np.exp(-2)))


def test_threads_beyond_the_cores_are_honoured_with_the_same_scores(artifact: Artifact):
    with Reranker.load(artifact.folder, n_threads=3) as three, Reranker.load(artifact.folder, n_threads=1) as one:
        assert three.n_threads == 3
        assert three.score([("one", "two")]).tolist() == one.score([("one", "two")]).tolist()


def test_fp32_that_answers_no_number_blames_the_checkpoint_and_no_precision(reranker: Reranker):
    with pytest.raises(
        ScoreError, match="cpu-fp32 answered nan for pair 5000: no precision is more exact, so the chec"
    ):
        reranker.score([("one", "two")] * 5000 + [("one", "nan")])


def test_another_precision_that_answers_no_number_names_fp32(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "both", precisions=("fp32", "int8"), points={"fp32": np.nan_to_num(POINTS)})
    with Reranker.load(artifact.folder, precision="int8") as reranker:
        with pytest.raises(ScoreError, match="cpu-int8-avx2 answered nan for pair 0: use precision='fp32'"):
            reranker.score([("one", "nan")])
        assert reranker.with_precision("fp32").score([("one", "nan")]).tolist() == [1.0]


@pytest.mark.parametrize(
    "name",
    [
        "a" * 300,
        "owner/" + "a" * 300,
        "a" * 5000,
        "a\0b",
        "owner/a\0b",
        "a\nb",
        "",
        " ",
        "~nobody-is-called-so/x",
        3,
        None,
        b"a",
    ],
)
def test_a_source_that_names_nothing_is_one_sentence(name: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtifactError) as refused:
        Reranker.load(name)
    assert "\n" not in str(refused.value).split(":")[0]
    assert "\0" not in str(refused.value)


def test_a_revision_is_for_the_hub_whoever_finds_an_artifact(artifact: Artifact):
    with pytest.raises(InputError, match="revision='v2' is a state of a hub repository"):
        find_artifact(artifact.folder, lambda found: found.manifest.variants[0], Hub(revision="v2"))


def test_flagembedding_s_interface_allows_a_query_longer_than_a_row_as_it_does(artifact: Artifact):
    reranker = FlagReranker(str(artifact.folder), max_length=32, query_max_length=500)
    assert reranker.compute_score(["one", "two"]) == [3.0]
    assert reranker.compute_score(["one", "two"], max_length=16) == [3.0]


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.sampled_from(["auto", "cpu", "fp32", "int8", "exact", "chunk", "left", "{}{}", "vnni", "one", ("one", "two")]),
    st.lists(st.one_of(st.text(max_size=4), st.none(), st.integers(0, 3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([np.array(["one", "two"]), np.array([["one", "two"]]), np.array(3), np.float32(2), object, len]),
)
OF_LOAD = (
    *("device", "precision", "instruction_set", "n_threads", "max_length", "cache_dir", "prepare", "cutoff_layer"),
    *("gpu_memory_gb", "query_max_length", "passage_max_length", "truncation", "long_documents"),
    *(
        "truncation_side",
        "query_instruction",
        "passage_instruction",
        "query_instruction_format",
        "question",
        "nonsense",
    ),
)
CALLS: dict[str, Callable[..., object]] = {
    "rank": lambda r, a, b, options: r.rank(a, b, **options),
    "score": lambda r, a, b, options: r.score(a, **options),
    "with_rules": lambda r, a, b, options: r.with_rules(**options).rank("one", ["two"]),
    "with_precision": lambda r, a, b, options: r.with_precision(a),
    "with_cutoff": lambda r, a, b, options: r.with_cutoff(a),
    "compute_score": lambda r, a, b, options: _flag(r).compute_score(a, **options),
}
OF_CALLS = {
    "rank": ("top_n", "normalize", "refine", "progressive"),
    "score": ("normalize", "cutoff_layers"),
    "with_rules": OF_LOAD[9:],
    "compute_score": ("batch_size", "query_max_length", "max_length", "normalize", "nonsense"),
}
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzed
@given(options=st.dictionaries(st.sampled_from(OF_LOAD), ANYTHING, max_size=3))
@example(options={"device": np.array(["cpu", "cuda"])})
def test_whatever_load_is_given_it_loads_or_says_what_is_wrong(options: dict[str, Any]):
    _says_what_is_wrong(lambda: Reranker.load(_artifact(), **options).close())


@fuzzed
@given(data=st.data(), name=st.sampled_from(sorted(CALLS)), first=ANYTHING, second=ANYTHING)
def test_whatever_a_call_is_given_it_answers_or_says_what_is_wrong(data: Any, name: str, first: Any, second: Any):
    known = OF_CALLS.get(name, ())
    options = data.draw(st.dictionaries(st.sampled_from(known), ANYTHING, max_size=2)) if known else {}
    _says_what_is_wrong(lambda: CALLS[name](_reranker(), first, second, options))


def _says_what_is_wrong(call: Callable[[], object]) -> None:
    """Call, and let pass what the library says on purpose: one of its errors, or Python's for an unknown option."""
    try:
        call()
    except RankrtError as error:
        assert len(str(error)) > 10
    except TypeError as error:
        assert "has no option 'nonsense'" in str(error)


_made: dict[str, Any] = {}


def _artifact() -> Path:
    if "artifact" not in _made:
        _made["folder"] = tempfile.TemporaryDirectory()
        _made["artifact"] = tiny_artifact(Path(_made["folder"].name) / "tiny").folder
    folder: Path = _made["artifact"]
    return folder


def _reranker() -> Reranker:
    if "reranker" not in _made:
        _made["reranker"] = Reranker.load(_artifact())
    reranker: Reranker = _made["reranker"]
    return reranker


def _flag(reranker: Reranker) -> FlagReranker:
    if "flag" not in _made:
        _made["flag"] = FlagReranker(str(_artifact()), max_length=64)
    flag: FlagReranker = _made["flag"]
    return flag
