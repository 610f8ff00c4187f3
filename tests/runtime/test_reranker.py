"""Ranking and scoring: order, independence, bad input, and what is reported."""

import logging
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rankrt.backends.session
from rankrt import ArtifactError, DeviceError, InputError, MissingExtra, Reranker, Rules, ScoreError
from rankrt.artifact.manifest import Artifact, Layout, sha256_of
from rankrt.backends.planner import Capacity
from rankrt.scoring import best_rows, sigmoid
from tests.support import FakeBackend, in_threads, model_of, tiny_artifact


def test_documents_come_best_first_with_their_place_in_the_list(reranker: Reranker):
    hits = reranker.rank("zero", ["one", "three", "two"])
    assert [(hit.index, hit.score, hit.document) for hit in hits] == [
        (1, 3.0, "three"),
        (2, 2.0, "two"),
        (0, 1.0, "one"),
    ]


def test_equal_scores_keep_the_order_in_which_they_were_given(reranker: Reranker):
    assert [hit.index for hit in reranker.rank("zero", ["two", "one", "two", "one", "two"])] == [0, 2, 4, 1, 3]


def test_top_n_keeps_the_best_and_reports_all(reranker: Reranker):
    ranking = reranker.rank("zero", ["one", "three", "two"], top_n=2)
    assert [hit.index for hit in ranking] == [1, 2]
    assert (len(ranking), ranking.n_documents, ranking.n_tokens) == (2, 3, 18)


def test_a_ranking_is_a_sequence(reranker: Reranker):
    ranking = reranker.rank("zero", ["one", "two"])
    assert ranking[0].index == 1
    assert ranking[:1] == ranking.hits[:1]
    assert ranking[0] in ranking


def test_scores_come_in_the_order_of_the_pairs(reranker: Reranker):
    scores = reranker.score([("one", "two two two"), ("one", ""), ("three", "four")])
    assert scores.tolist() == [7.0, 1.0, 7.0]
    assert scores.dtype == np.float32


def test_normalizing_is_the_sigmoid(reranker: Reranker):
    assert reranker.score([("zero", "zero")], normalize=True).tolist() == [0.5]
    assert reranker.rank("zero", ["two"], normalize=True)[0].score == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-7)


def test_the_sigmoid_of_extreme_logits_is_a_number():
    with np.errstate(over="ignore"):
        assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0.0, 0.5, 1.0]


def test_no_documents_give_an_empty_ranking(reranker: Reranker):
    ranking = reranker.rank("one", [])
    assert (list(ranking), ranking.n_documents, ranking.n_tokens) == ([], 0, 0)
    assert reranker.score([]).shape == (0,)


def test_an_empty_document_has_a_score_like_any_other(reranker: Reranker):
    assert [hit.index for hit in reranker.rank("one", ["", "two"])] == [1, 0]


def test_any_iterable_of_documents_will_do(reranker: Reranker):
    assert len(reranker.rank("one", (word for word in ["two", "three"]))) == 2


def test_a_truncated_document_says_so(reranker: Reranker):
    hits = reranker.rank("one", ["two", "two " * 100])
    assert [hit.truncated for hit in hits] == [True, False]


def test_a_truncated_query_is_reported(reranker: Reranker):
    assert reranker.rank("one " * 100, ["two"]).query_truncated
    assert not reranker.rank("one", ["two"]).query_truncated


def test_the_best_chunk_of_a_long_document_counts_and_says_where_it_is(artifact: Artifact):
    document = " ".join(["zero"] * 60 + ["four"] * 5 + ["zero"] * 60)
    with Reranker.load(artifact.folder, long_documents="chunk") as reranker:
        hit = reranker.rank("one", ["one", document])[0]
    assert hit.index == 1
    assert hit.score == 1 + 5 * 4
    assert hit.span is not None
    assert document[slice(*hit.span)].count("four") == 5
    assert not hit.truncated


def test_without_chunks_there_is_no_span(reranker: Reranker):
    assert reranker.rank("one", ["two"])[0].span is None


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(reranker: Reranker, query: str):
    with pytest.raises(InputError, match="the query is empty: there is nothing to rank by"):
        reranker.rank(query, ["one"])
    with pytest.raises(InputError, match="the query is empty"):
        reranker.score([(query, "one")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.rank(None, ["a"]), "the query is NoneType, not str"),
        (lambda r: r.rank("one", "two"), "documents is one str, expected a list"),
        (lambda r: r.rank("one", ["two", 3]), "document 1 is int, not str"),
        (lambda r: r.rank("one", ["two"], top_n=0), "top_n=0, expected a whole number of at least 1"),
        (lambda r: r.score("one"), "pairs is one str, expected a list"),
        (lambda r: r.score(["one", "two"]), r"expected pairs \(query, passage\), got 'one'"),
        (lambda r: r.score([("one", "two", "three")]), r"expected pairs \(query, passage\)"),
        (lambda r: r.rank("one", ["\ud800"]), "lone surrogate"),
    ],
)
def test_bad_input_says_what_was_expected(reranker: Reranker, call, message: str):
    with pytest.raises(InputError, match=message):
        call(reranker)


def test_nul_and_a_huge_document_are_scored(reranker: Reranker):
    assert len(reranker.rank("one", ["\0", "two " * 2_500_000])) == 2


def test_a_model_that_answers_no_number_is_an_error_and_names_the_pair(reranker: Reranker):
    with pytest.raises(ScoreError, match="cpu-fp32 answered nan for pair 1"):
        reranker.score([("one", "two"), ("one", "nan")])


@pytest.mark.parametrize("layout", ["packed", "stacked"])
@pytest.mark.parametrize("prepare", [True, False])
def test_a_score_is_the_same_alone_in_a_batch_and_in_any_order(tmp_path: Path, layout: Layout, prepare: bool):
    generator = np.random.default_rng(0)
    pairs = [(" ".join(["one"] * n), " ".join(["two"] * m)) for n, m in generator.integers(1, 25, (80, 2))]
    with Reranker.load(
        tiny_artifact(tmp_path / layout, layout=layout).folder, prepare=prepare, n_threads=2
    ) as reranker:
        together = reranker.score(pairs)
        alone = np.concatenate([reranker.score([pair]) for pair in pairs])
        order = generator.permutation(len(pairs))
        shuffled = reranker.score([pairs[i] for i in order])
    assert together.tobytes() == alone.tobytes()
    assert together[order].tobytes() == shuffled.tobytes()


def test_sixteen_threads_share_one_reranker(artifact: Artifact):
    pairs = [(" ".join(["one"] * n), " ".join(["two"] * (20 - n))) for n in range(1, 20)]
    with Reranker.load(artifact.folder, n_threads=4) as reranker:
        expected = reranker.score(pairs).tobytes()
        answers = in_threads(16, lambda i: [reranker.score(pairs).tobytes() for _ in range(20)])
    assert all(answer == [expected] * 20 for answer in answers)


def test_token_types_reach_a_stacked_graph_that_asks_for_them(tmp_path: Path):
    with Reranker.load(tiny_artifact(tmp_path / "stacked", layout="stacked").folder) as reranker:
        assert reranker.score([("three", "one"), ("one", "three")]).tolist() == [5.0, 7.0]


def test_other_rules_share_the_loaded_model(reranker: Reranker):
    short = reranker.with_rules(max_length=8)
    assert short.score([("zero", "one " * 9)]).tolist() == [3.0]
    assert reranker.score([("zero", "one " * 9)]).tolist() == [9.0]


def test_blocks_of_a_long_list_are_joined(reranker: Reranker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rankrt.scoring._BLOCK_PAIRS", 3)
    scores = reranker.score([("zero", word) for word in ["one", "two", "three", "four"] * 2])
    assert scores.tolist() == [1.0, 2.0, 3.0, 4.0] * 2


def test_any_backend_will_do(artifact: Artifact):
    backend = FakeBackend(Capacity(layout="packed", n_threads=1, n_narrow=1))
    with Reranker(model_of(artifact, backend), Rules(max_length=64)) as reranker:
        assert reranker.score([("one", "two"), ("one", "two three")]).tolist() == [6.0, 7.0]
    assert backend.is_closed
    assert [encoded.lengths.tolist() for encoded in backend.asked] == [[6, 7]]


def test_the_best_row_of_each_pair_is_the_first_of_equals():
    rows = best_rows(np.array([1, 3, 3, 0, 5], np.float32), np.array([0, 0, 0, 1, 2]), 3)
    assert rows.tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_length": 65}, InputError, "this model takes at most 64 tokens"),
        ({"device": "gpu"}, InputError, "device='gpu', expected 'auto', 'cpu', 'cuda', 'tensorrt', or one with"),
        ({"device": "cpu:1"}, InputError, "device='cpu:1', expected"),
        ({"device": "cpu", "gpu_memory_gb": 1}, InputError, "gpu_memory_gb is for CUDA only, not for device='cpu'"),
        ({"device": "cuda", "n_threads": 1}, InputError, "n_threads is for the CPU only, not for device='cuda'"),
        ({"gpu_memory_gb": 0}, InputError, "gpu_memory_gb=0, expected more than 0"),
        ({"n_threads": 0}, InputError, "n_threads=0, expected a whole number of at least 1"),
        ({"precision": "fp16"}, DeviceError, "has no fp16 for cpu; it has cpu-fp32"),
        ({"truncation": "none"}, InputError, "truncation='none', expected one of"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(artifact: Artifact, options, error, message: str):
    with pytest.raises(error, match=message):
        Reranker.load(artifact.folder, **options)


def test_a_missing_engine_names_the_pip_command(artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rankrt.backends.session, "import_module", _no_such_module)
    with pytest.raises(MissingExtra, match=r"ONNX Runtime is not installed: pip install 'rankrt\[cpu\]'"):
        Reranker.load(artifact.folder)


def test_two_engines_at_once_are_refused(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("onnxruntime", "onnxruntime-1.32.0.dist-info", "onnxruntime_gpu-1.31.1.dist-info"):
        (tmp_path / "site" / name).mkdir(parents=True)
    engine = ModuleType("onnxruntime")
    engine.__file__ = str(tmp_path / "site" / "onnxruntime" / "__init__.py")
    monkeypatch.setattr(rankrt.backends.session, "import_module", lambda name: engine)
    with pytest.raises(DeviceError, match="onnxruntime and onnxruntime-gpu are both installed"):
        Reranker.load(artifact.folder)


def test_a_graph_that_the_engine_cannot_load_is_an_artifact_error(artifact: Artifact):
    path = artifact.folder / "cpu-fp32.onnx"
    good = sha256_of(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    manifest = artifact.folder / "rankrt.json"
    manifest.write_text(manifest.read_text().replace(good, sha256_of(path)))
    with pytest.raises(ArtifactError, match=r"ONNX Runtime \S+ cannot load .*cpu-fp32.onnx"):
        Reranker.load(artifact.folder, prepare=False)


def test_a_missing_data_file_is_noticed_before_the_engine_is(artifact: Artifact):
    (artifact.folder / "points.fp32.data").unlink()
    with pytest.raises(ArtifactError, match=r"lacks points\.fp32\.data"):
        Reranker.load(artifact.folder)


def test_the_library_is_silent(artifact: Artifact, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), Reranker.load(artifact.folder) as reranker:
        reranker.rank("one", ["two"])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_reranker_says_what_it_is(reranker: Reranker):
    assert repr(reranker) == "Reranker('tiny', cpu-fp32, max_length=64)"


def _no_such_module(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_the_version_is_the_distribution_s():
    assert rankrt.__version__ == metadata.version("rankrt")
