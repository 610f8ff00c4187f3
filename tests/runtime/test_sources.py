"""Where artifacts come from: folders, the hub's cache, and checkpoints with and without the export half."""

import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import rankrt.extras
from rankrt import ArtifactError, MissingExtra, Reranker
from rankrt.artifact import Artifact
from tests.support import tiny_artifact


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a folder into the hub's cache as a download would, and be offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository: str, folder: Path, *, commit: str, branch: str) -> None:
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / branch).write_text(commit)
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            blob = root / "blobs" / f"{commit}-{file.name}"
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)

    return put


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def fake_exporter(monkeypatch: pytest.MonkeyPatch, export: Callable[..., None]) -> None:
    class Point:
        name = "export"

        def load(self) -> Callable[..., None]:
            return export

    monkeypatch.setattr(rankrt.extras, "entry_points", lambda group: [Point()])


def no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("export", "no_such_module:export", "rankrt.exporters")
    monkeypatch.setattr(rankrt.extras, "entry_points", lambda group: [point])


def test_an_artifact_in_a_hub_repository_loads_offline_from_the_cache(artifact: Artifact, publish: Any):
    publish("someone/tiny", artifact.folder, commit="a" * 40, branch="main")
    with Reranker.load("someone/tiny") as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]


def test_a_revision_of_a_hub_repository_is_honoured(artifact: Artifact, tmp_path: Path, publish: Any):
    publish("someone/tiny", artifact.folder, commit="a" * 40, branch="main")
    publish("someone/tiny", tiny_artifact(tmp_path / "b", max_length=32).folder, commit="b" * 40, branch="short")
    with Reranker.load("someone/tiny", revision="short") as reranker:
        assert reranker.rules.max_length == 32


def test_a_repository_that_is_not_in_the_cache_is_an_error_when_offline(publish: Any):
    with pytest.raises(ArtifactError, match="someone/else@v2 does not exist here and could not be fetched"):
        Reranker.load("someone/else", revision="v2")


@pytest.mark.parametrize("source", ["./missing", "/no/such/folder", "word", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(source: str):
    remedy = rf"{source} does not exist and is not a hub id \(owner/name\)\. To create it: rankrt export \S+ {source}"
    with pytest.raises(ArtifactError, match=remedy):
        Reranker.load(source)


def test_a_file_is_no_source(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is a file; expected a folder"):
        Reranker.load(tmp_path / "model.onnx")


def test_an_empty_folder_is_neither_artifact_nor_checkpoint(tmp_path: Path):
    with pytest.raises(
        ArtifactError, match=r"is neither an artifact \(no rankrt\.json\) nor a checkpoint \(no config\.json\)"
    ):
        Reranker.load(tmp_path)


def test_a_checkpoint_without_the_export_half_says_which_command_makes_the_artifact(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    no_exporter(monkeypatch)
    with pytest.raises(
        MissingExtra, match=r"is a checkpoint, not an artifact.*'rankrt\[cpu,export\]'.*rankrt export \S+ \./checkpoint"
    ):
        Reranker.load(checkpoint)


def test_a_checkpoint_is_exported_into_the_cache_once_and_again_when_it_changes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    exported: list[str] = []

    def export(source: str, folder: Path, *, revision: str | None, cache_dir: str | None) -> None:
        exported.append(source)
        tiny_artifact(folder)

    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    fake_exporter(monkeypatch, export)
    Reranker.load(checkpoint).close()
    Reranker.load(checkpoint).close()
    assert exported == [str(checkpoint)]
    assert "is a checkpoint: exporting it once into" in caplog.text
    (checkpoint / "config.json").write_text('{"changed": true}')
    Reranker.load(checkpoint).close()
    assert len(exported) == 2


def test_an_export_that_fails_leaves_nothing_in_the_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def export(source: str, folder: Path, **options: object) -> None:
        (folder / "half").write_text("")
        raise ArtifactError("no luck")

    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    fake_exporter(monkeypatch, export)
    with pytest.raises(ArtifactError, match="no luck"):
        Reranker.load(checkpoint)
    assert not [path for path in (tmp_path / "cache").glob("**/*") if path.name == "half"]


def test_a_checkpoint_in_a_hub_repository_is_exported_with_its_commit(
    checkpoint: Path, tmp_path: Path, publish: Any, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[str, str | None]] = []

    def export(source: str, folder: Path, *, revision: str | None, cache_dir: str | None) -> None:
        calls.append((source, revision))
        tiny_artifact(folder)

    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    publish("someone/checkpoint", checkpoint, commit="c" * 40, branch="main")
    fake_exporter(monkeypatch, export)
    Reranker.load("someone/checkpoint", revision="main").close()
    assert calls == [("someone/checkpoint", "main")]
