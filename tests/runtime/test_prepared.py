"""The cache of prepared models: made once, by one process, from files that are what they should be."""

import logging
import multiprocessing
import shutil
from pathlib import Path

import pytest

from rankrt import ArtifactError, Reranker
from rankrt.artifact import Artifact
from rankrt.machine import this_machine
from rankrt.prepared import Prepared, PreparedModels
from tests.support import in_threads, tiny_artifact


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedModels:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    return PreparedModels()


def entry_of(artifact: Artifact, models: PreparedModels) -> Prepared:
    return models.entry(artifact, artifact.manifest.variants[0], this_machine())


def test_loading_prepares_a_model_once(artifact: Artifact, models: PreparedModels):
    Reranker.load(artifact.folder).close()
    (folder,) = (path for path in models.folder.iterdir() if path.is_dir())
    made_at = (folder / "model.onnx").stat().st_mtime_ns
    Reranker.load(artifact.folder).close()
    assert (folder / "model.onnx").stat().st_mtime_ns == made_at


def test_a_prepared_model_gives_the_same_scores(artifact: Artifact, models: PreparedModels):
    pairs = [("one", "two three"), ("four", "")]
    with Reranker.load(artifact.folder) as prepared, Reranker.load(artifact.folder, prepare=False) as plain:
        assert prepared.score(pairs).tolist() == plain.score(pairs).tolist() == [6.0, 4.0]


def test_preparing_can_be_switched_off(artifact: Artifact, models: PreparedModels):
    Reranker.load(artifact.folder, prepare=False).close()
    assert models.entries() == []


def test_entries_differ_by_artifact_engine_and_processor(artifact: Artifact, models: PreparedModels, tmp_path: Path):
    entry = entry_of(artifact, models)
    other = entry_of(tiny_artifact(tmp_path / "other", max_length=32), models)
    assert len({entry.folder_name, other.folder_name}) == 2
    assert entry.engine and entry.instructions


def test_threads_that_load_together_prepare_once_and_all_score(artifact: Artifact, models: PreparedModels):
    def load(i: int) -> float:
        with Reranker.load(artifact.folder, n_threads=1) as reranker:
            return float(reranker.score([("one", "two")])[0])

    assert in_threads(8, load) == [3.0] * 8
    assert len(models.entries()) == 1
    assert not list(models.folder.glob(".unfinished-*"))


def _load_and_score(folder: Path) -> float:
    with Reranker.load(folder, n_threads=1) as reranker:
        return float(reranker.score([("one", "two")])[0])


def test_processes_that_load_together_prepare_once_and_all_score(artifact: Artifact, models: PreparedModels):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_load_and_score, [artifact.folder] * 3) == [3.0] * 3
    assert len(models.entries()) == 1


def test_a_changed_data_file_is_not_prepared(artifact: Artifact, models: PreparedModels):
    path = artifact.folder / "points.fp32.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        Reranker.load(artifact.folder)
    assert models.entries() == []


def test_without_room_on_the_disk_the_model_is_loaded_as_it_is_and_says_so(
    artifact: Artifact, models: PreparedModels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    with caplog.at_level(logging.WARNING, "rankrt"), Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "not using a prepared model" in caplog.text
    assert "GB free, the prepared model takes" in caplog.text


def test_a_cache_that_cannot_be_written_is_announced(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "rankrt"), Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "not using a prepared model" in caplog.text


def test_a_damaged_entry_says_how_to_get_rid_of_it(artifact: Artifact, models: PreparedModels):
    Reranker.load(artifact.folder).close()
    (graph,) = models.folder.glob("*/model.onnx")
    graph.write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match=r"cannot load .*model.onnx.*rankrt cache clear"):
        Reranker.load(artifact.folder)


def test_the_cache_can_be_listed_and_cleared(artifact: Artifact, models: PreparedModels):
    Reranker.load(artifact.folder).close()
    ((entry, n_bytes),) = models.entries()
    assert (entry.name, entry.variant) == ("tiny", "cpu-fp32")
    assert models.clear() == n_bytes > 0
    assert models.entries() == []
    Reranker.load(artifact.folder).close()
    assert len(models.entries()) == 1


def test_an_entry_that_cannot_be_read_is_listed_as_that(artifact: Artifact, models: PreparedModels):
    Reranker.load(artifact.folder).close()
    (path,) = models.folder.glob("*/prepared.json")
    path.write_text('{"name": "of another version"}')
    ((entry, _),) = models.entries()
    assert (entry.name, entry.variant) == (path.parent.name, "unreadable")
