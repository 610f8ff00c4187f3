"""Prepared models: made once, by one process, from files that are what they should be, and made again when damaged."""

import logging
import multiprocessing
import shutil
from pathlib import Path

import pytest

from rankrt import ArtifactError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.files.cache import HostCache, Item, Key
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import place_variant
from rankrt.loading.prepared import Prepared, key_of
from tests.support import in_threads, tiny_artifact


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    return Prepared()


def key(artifact: Artifact) -> Key:
    return key_of(place_variant(artifact, artifact.manifest.variants[0], Device("cpu"), this_host()))


def prepared_items() -> list[Item]:
    return [item for item in HostCache().items() if item.kind == "prepared" and item.state == "ready"]


def test_loading_prepares_a_model_once(artifact: Artifact, models: Prepared):
    Reranker.load(artifact.folder).close()
    (folder,) = (path for path in models.folder.iterdir() if path.is_dir())
    made_at = (folder / "model.onnx").stat().st_mtime_ns
    Reranker.load(artifact.folder).close()
    assert (folder / "model.onnx").stat().st_mtime_ns == made_at


def test_a_prepared_model_gives_the_same_scores(artifact: Artifact, models: Prepared):
    pairs = [("one", "two three"), ("four", "")]
    with Reranker.load(artifact.folder) as prepared, Reranker.load(artifact.folder, prepare=False) as plain:
        assert prepared.score(pairs).tolist() == plain.score(pairs).tolist() == [6.0, 4.0]


def test_preparing_can_be_switched_off(artifact: Artifact, models: Prepared):
    Reranker.load(artifact.folder, prepare=False).close()
    assert prepared_items() == []


def test_entries_differ_by_artifact_engine_and_processor(artifact: Artifact, models: Prepared, tmp_path: Path):
    mine, other = key(artifact), key(tiny_artifact(tmp_path / "other", max_length=32))
    assert len({mine.folder_name, other.folder_name}) == 2
    assert {"engine", "processor", "artifact"} == mine.depends_on.keys()


def test_the_name_in_a_manifest_does_not_lead_outside_the_cache(models: Prepared):
    for name in ("../../outside", "a/b", "\0", "x" * 300, "\u6f22" * 300, ".."):
        path = models.cache.path(Key(kind="prepared", name=name, variant="cpu-fp32", depends_on={}))
        assert path.parent == models.folder
        assert len(path.name) < 120


def test_threads_that_load_together_prepare_once_and_all_score(artifact: Artifact, models: Prepared):
    def load(i: int) -> float:
        with Reranker.load(artifact.folder, n_threads=1) as reranker:
            return float(reranker.score([("one", "two")])[0])

    assert in_threads(8, load) == [3.0] * 8
    assert len(prepared_items()) == 1
    assert not list(models.folder.glob(".unfinished-*"))


def _load_and_score(folder: Path) -> float:
    with Reranker.load(folder, n_threads=1) as reranker:
        return float(reranker.score([("one", "two")])[0])


def test_processes_that_load_together_prepare_once_and_all_score(artifact: Artifact, models: Prepared):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_load_and_score, [artifact.folder] * 3) == [3.0] * 3
    assert len(prepared_items()) == 1


def test_a_changed_data_file_is_not_prepared(artifact: Artifact, models: Prepared):
    path = artifact.folder / "points.fp32.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        Reranker.load(artifact.folder)
    assert prepared_items() == []


def test_without_room_on_the_disk_the_model_is_loaded_as_it_is_and_says_so(
    artifact: Artifact, models: Prepared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    with caplog.at_level(logging.WARNING, "rankrt"), Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "not using the cache" in caplog.text
    assert "GB free, the prepared model takes" in caplog.text


def test_above_the_limit_of_the_cache_the_model_is_loaded_as_it_is_and_says_so(
    artifact: Artifact, models: Prepared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("RANKRT_CACHE_MAX", "10B")
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "RANKRT_CACHE_MAX is 0.0 GB, the prepared model takes" in caplog.text
    assert prepared_items() == []


def test_a_cache_that_cannot_be_written_is_announced(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "rankrt"), Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "not using the cache" in caplog.text


@pytest.mark.parametrize("damage", ["zeros", "cut", "other bytes", "gone"])
@pytest.mark.parametrize("name", ["model.onnx", "entry.json"])
def test_a_damaged_prepared_model_is_made_again_and_scores_stay(
    artifact: Artifact, models: Prepared, caplog: pytest.LogCaptureFixture, name: str, damage: str
):
    Reranker.load(artifact.folder).close()
    (file,) = models.folder.glob(f"*/{name}")
    content = file.read_bytes()
    damaged = {"zeros": b"\0" * len(content), "cut": content[:-1], "other bytes": b"x" + content[1:]}
    file.write_bytes(damaged[damage]) if damage in damaged else file.unlink()
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two three")]).tolist() == [6.0]
    assert f"is damaged: {name}" in caplog.text
    assert [problem for _, problem in HostCache().damaged()] == []
    assert len(prepared_items()) == 1


def test_a_file_of_a_prepared_model_that_is_not_the_engines_is_no_reason_to_end(
    artifact: Artifact, models: Prepared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The engine reports a full disk as it reports everything: by an exception of its own."""
    monkeypatch.setattr("rankrt.loading.prepare.GRAPH", "no/such/folder{}.onnx")
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert "ONNX Runtime could not write a prepared model" in caplog.text
