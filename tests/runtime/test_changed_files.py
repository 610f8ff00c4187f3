"""A changed file of an artifact is an error, however the artifact is loaded: that is what the README promises."""

import os
from pathlib import Path

import pytest

from rankrt import ArtifactError, Reranker
from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import Artifact, sha256_of
from rankrt.files.cache import HostCache
from tests.support import tiny_artifact


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache, and files of all sizes treated as large ones are, which a test cannot write."""
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rankrt.artifact.hashes.SMALL_BYTES", 8)
    monkeypatch.setattr("rankrt.loading.open.SMALL_BYTES", 8)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read whole."""
    names: list[str] = []

    def read(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("rankrt.artifact.hashes.sha256_of", read)
    return names


def change(path: Path, *, keeps_times: bool = False) -> None:
    """Change the last byte, so that the size stays."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if keeps_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize("is_loaded_before", [True, False])
@pytest.mark.parametrize("keeps_times", [True, False])
@pytest.mark.parametrize("name", ["tokenizer.json", "cpu-fp32.onnx", "points.fp32.data"])
def test_a_changed_file_of_the_same_size_is_an_error(
    artifact: Artifact, name: str, keeps_times: bool, is_loaded_before: bool, prepare: bool
):
    if is_loaded_before:
        Reranker.load(artifact.folder, prepare=prepare).close()
    change(artifact.path(name), keeps_times=keeps_times)
    with pytest.raises(ArtifactError, match=rf"{name} is not the file that was exported \(its SHA-256 differs\)"):
        Reranker.load(artifact.folder, prepare=prepare)


@pytest.mark.parametrize("name", ["tokenizer.json", "cpu-fp32.onnx", "points.fp32.data"])
def test_a_changed_file_is_an_error_where_there_is_no_cache(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "file" / "cache"))
    Reranker.load(artifact.folder).close()
    change(artifact.path(name))
    with pytest.raises(ArtifactError, match=f"{name} is not the file that was exported"):
        Reranker.load(artifact.folder)


def test_what_the_engine_says_of_a_changed_file_does_not_hide_the_change(artifact: Artifact, tmp_path: Path):
    """A graph of zeros cannot be loaded; the reason is the file, not the engine."""
    graph = artifact.path("cpu-fp32.onnx")
    graph.write_bytes(b"\0" * graph.stat().st_size)
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        Reranker.load(artifact.folder, prepare=False)


@pytest.mark.parametrize("prepare", [True, False])
def test_a_file_that_was_cut_is_refused_before_it_is_mapped(artifact: Artifact, prepare: bool):
    """A process that reads behind the end of a mapped file is killed by the system."""
    Reranker.load(artifact.folder, prepare=prepare).close()
    data = artifact.path("points.fp32.data")
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(ArtifactError, match=r"points\.fp32\.data has \d+ bytes instead of \d+"):
        Reranker.load(artifact.folder, prepare=prepare)


def test_a_large_file_is_read_whole_once(artifact: Artifact, reads: list[str], monkeypatch: pytest.MonkeyPatch):
    for _ in range(3):
        monkeypatch.setattr("rankrt.artifact.hashes._of_this_process", {})
        Reranker.load(artifact.folder, prepare=False).close()
    assert sorted(reads) == ["cpu-fp32.onnx", "points.fp32.data"]


def test_a_file_that_was_only_touched_is_read_again_and_then_known(artifact: Artifact, reads: list[str]):
    hashes = FileHashes(artifact.folder, HostCache())
    first = hashes.sha256("points.fp32.data")
    artifact.path("points.fp32.data").touch()
    assert [hashes.sha256("points.fp32.data") for _ in range(2)] == [first] * 2
    assert reads == ["points.fp32.data"] * 2


def test_the_same_artifact_elsewhere_is_read_there(artifact: Artifact, tmp_path: Path, reads: list[str]):
    other = tiny_artifact(tmp_path / "other")
    for folder in (artifact.folder, other.folder):
        Reranker.load(folder).close()
    assert reads.count("points.fp32.data") == 2


def test_damage_in_what_is_remembered_costs_time_only(artifact: Artifact, cache: Path, reads: list[str]):
    FileHashes(artifact.folder, None)
    Reranker.load(artifact.folder).close()
    (remembered,) = cache.glob("hashes/*/hashes.json")
    remembered.write_bytes(b"[" * remembered.stat().st_size)
    with Reranker.load(artifact.folder) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
