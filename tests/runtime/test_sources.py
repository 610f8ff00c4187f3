"""Where artifacts come from: folders, the hub's cache, and checkpoints with and without the export half."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import pytest

from rankrt import ArtifactError, MissingExtra, Reranker
from rankrt.artifact.manifest import FORMAT_VERSION, Artifact
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache
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
    module = ModuleType("rankrt_export.pipeline")
    module.export_into = export  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rankrt_export.pipeline", None)


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


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were exported, by an exporter that writes a tiny artifact."""
    sources: list[str] = []

    def export(source: str, folder: Path, *, revision: str | None, cache_dir: str | None) -> None:
        sources.append(source)
        tiny_artifact(folder)

    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    fake_exporter(monkeypatch, export)
    return sources


def test_a_checkpoint_is_exported_into_the_cache_once_and_again_when_its_content_changes(
    checkpoint: Path, exported: list[str], caplog: pytest.LogCaptureFixture
):
    Reranker.load(checkpoint).close()
    Reranker.load(checkpoint).close()
    assert exported == [str(checkpoint)]
    assert "is a checkpoint: exporting it once into" in caplog.text
    (checkpoint / "config.json").write_text('{"changed": true}')
    Reranker.load(checkpoint).close()
    assert len(exported) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt", "1_Dense/model.safetensors"])
def test_every_file_that_an_export_reads_makes_another_checkpoint(checkpoint: Path, exported: list[str], name: str):
    (checkpoint / "modules.json").write_text('[{"path": ""}, {"path": "1_Dense"}, {"path": "2_Gone"}, 7]')
    (checkpoint / "1_Dense").mkdir()
    for content in ("one", "two", "two"):
        (checkpoint / name).write_text(content)
        Reranker.load(checkpoint).close()
    assert len(exported) == 2


def test_what_an_export_does_not_read_does_not_export_again(checkpoint: Path, exported: list[str]):
    Reranker.load(checkpoint).close()
    (checkpoint / "README.md").write_text("a note")
    (checkpoint / "onnx").mkdir()
    (checkpoint / "onnx" / "model.onnx").write_text("of others")
    (checkpoint / "trainer_state.json").write_text("{}")
    for path in checkpoint.iterdir():
        path.touch()
    Reranker.load(checkpoint).close()
    assert len(exported) == 1


def test_the_same_checkpoint_in_another_folder_of_that_name_is_the_same(
    checkpoint: Path, exported: list[str], tmp_path: Path
):
    other = tmp_path / "elsewhere" / checkpoint.name
    shutil.copytree(checkpoint, other)
    for folder in (checkpoint, other):
        Reranker.load(folder).close()
    assert len(exported) == 1


def test_an_export_in_a_newer_format_is_left_alone_and_another_is_made(
    checkpoint: Path, exported: list[str], monkeypatch: pytest.MonkeyPatch
):
    """A rollback of rankrt works with what the newer one has left."""
    with monkeypatch.context() as newer:
        newer.setattr("rankrt.artifact.source.FORMAT_VERSION", 99)
        Reranker.load(checkpoint).close()
    Reranker.load(checkpoint).close()
    assert len(exported) == 2


@pytest.mark.parametrize("name", ["rankrt.json", "points.fp32.data", "tokenizer.json"])
def test_a_damaged_export_is_made_again(checkpoint: Path, exported: list[str], tmp_path: Path, name: str):
    Reranker.load(checkpoint).close()
    (file,) = (tmp_path / "cache").glob(f"exported/*/{name}")
    file.write_bytes(b"x" * file.stat().st_size)
    with Reranker.load(checkpoint) as reranker:
        assert reranker.score([("one", "two")]).tolist() == [3.0]
    assert len(exported) == 2


def test_an_export_is_listed_and_cleared_with_the_rest(checkpoint: Path, exported: list[str]):
    Reranker.load(checkpoint).close()
    (item,) = (item for item in HostCache().items() if item.kind == "exported" and item.state == "ready")
    assert (item.name, item.depends_on["artifact format"]) == ("checkpoint", f"{FORMAT_VERSION}")
    assert item.n_bytes > 1000
    HostCache().clear()
    Reranker.load(checkpoint).close()
    assert len(exported) == 2


def test_a_checkpoint_without_a_cache_to_export_it_to_says_what_to_do(
    checkpoint: Path, exported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        CacheError, match=r"is a checkpoint, which is exported into the cache: .* rankrt export \S+ \./"
    ):
        Reranker.load(checkpoint)
    assert exported == []


def test_a_file_of_a_checkpoint_that_cannot_be_read_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    def export(source: str, folder: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", f"{source}/model.safetensors")

    fake_exporter(monkeypatch, export)
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read as .*: permission denied"):
        Reranker.load(checkpoint)


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
