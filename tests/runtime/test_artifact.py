"""The manifest: what it says comes back, and what it may not say is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest

from rankrt import ArtifactError, DeviceError, Reranker
from rankrt.artifact.manifest import FORMAT_VERSION, Artifact, open_artifact, sha256_of, write_manifest
from rankrt.host.cpu import this_machine
from rankrt.loading.choose import choose
from tests.support import tiny_artifact


def rewrite(artifact: Artifact, change: Any) -> Path:
    """Change the manifest as JSON."""
    path = artifact.folder / "rankrt.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return artifact.folder


def test_a_manifest_comes_back_as_it_was_written(artifact: Artifact):
    write_manifest(artifact.manifest, artifact.folder)
    assert open_artifact(artifact.folder) == artifact


def test_the_identity_changes_with_any_file(tmp_path: Path):
    one, other = tiny_artifact(tmp_path / "a"), tiny_artifact(tmp_path / "b", max_length=32)
    assert one.identity != other.identity
    assert one.identity == tiny_artifact(tmp_path / "c").identity


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"is not a rankrt artifact: it has no rankrt\.json"):
        open_artifact(tmp_path)


def test_a_newer_format_asks_for_a_newer_rankrt(artifact: Artifact):
    folder = rewrite(artifact, lambda manifest: manifest.update(format_version=FORMAT_VERSION + 1, something_new=1))
    with pytest.raises(ArtifactError, match="has format 7, this rankrt reads up to 6: upgrade rankrt"):
        open_artifact(folder)


def test_an_artifact_of_version_1_is_still_read(artifact: Artifact):
    def as_it_was(manifest: Any) -> None:
        manifest.update(format_version=1)
        del manifest["template"]["prompt"], manifest["variants"][0]["exits"]

    older = open_artifact(rewrite(artifact, as_it_was)).manifest
    assert older.variants == artifact.manifest.variants
    assert older.template == artifact.manifest.template


@pytest.mark.parametrize(("version", "name"), [(2, "cpu-int8-avx2"), (4, "cpu-int8-vnni")])
def test_int8_of_an_older_format_needs_no_kernels(tmp_path: Path, version: int, name: str):
    def as_it_was(manifest: Any) -> None:
        manifest.update(format_version=version)
        manifest["variants"][0]["instruction_set"] = None if version == 2 else "vnni"

    older = open_artifact(rewrite(tiny_artifact(tmp_path / "older", precisions=["int8"]), as_it_was))
    (variant,) = older.manifest.variants
    assert (variant.name, variant.key.needs_kernels) == (name, False)
    with Reranker.load(older.folder, prepare=False) as reranker:
        assert reranker.variant == variant
        assert reranker.score([("one", "two three")]).tolist() == [6.0]


def test_int8_for_kernels_of_format_5_is_still_for_them(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "older", precisions=["fp32", "int8"], for_kernels=["int8"])

    def as_it_was(manifest: Any) -> None:
        manifest.update(format_version=5)
        manifest["variants"][-1]["instruction_set"] = None

    older = open_artifact(rewrite(artifact, as_it_was)).manifest
    assert older.variants == artifact.manifest.variants
    assert [variant.name for variant in older.variants] == ["cpu-fp32", "cpu-int8-avx2", "cpu-int8-kernels"]


def with_exits(manifest: Any, compression: dict[str, Any]) -> None:
    """Make a causal variant of the first one, with exits after layers 1 and 3."""
    exits = [
        {"layer": n, "graph": manifest["variants"][0]["graph"], "verification": None, "margins": None} for n in (1, 3)
    ]
    manifest["variants"][0].update(layout="causal", exits=exits, compressions=[compression])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["variants"][0].update(layout="causal"), "`exits` of a causal variant are its exits in ascending"),
        (
            lambda m: m["variants"][0].update(compressions=[{"layer": 1, "ratio": 2, "graph": None}]),
            "`compressions` are those of a causal variant, in ascending order, before its last exit",
        ),
        (lambda m: with_exits(m, {"layer": 3, "ratio": 2, "graph": None}), "before its last exit"),
        (lambda m: with_exits(m, {"layer": 2, "ratio": 2, "graph": None}), "a `graph` unless its layer is an exit"),
        (lambda m: with_exits(m, {"layer": 1, "ratio": 1, "graph": None}), "a compression has a `ratio` above 1"),
        (lambda m: m.update(colour="red"), "unknown field `colour`"),
        (lambda m: m["variants"][0].update(speed=9), r"unknown field `speed` - at `\$.variants"),
        (lambda m: m.pop("tokenizer"), "missing required field `tokenizer`"),
        (lambda m: m.update(max_length="long"), r"Expected `int`, got `str` - at `\$.max_length`"),
        (lambda m: m["variants"][0].update(precision="fp64"), "Invalid enum value 'fp64'"),
        (lambda m: m.update(variants=[]), "`variants` is empty"),
        (lambda m: m["files"].update({"../x": {"n_bytes": 1, "sha256": ""}}), "an artifact is flat"),
        (lambda m: m["files"].pop("tokenizer.json"), "`files` lacks the hash of tokenizer.json"),
        (lambda m: m.pop("format_version"), "missing required field `format_version`"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(artifact: Artifact, change: Any, message: str):
    with pytest.raises(ArtifactError, match=message):
        open_artifact(rewrite(artifact, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"rankrt"', b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(artifact: Artifact, content: bytes):
    (artifact.folder / "rankrt.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a manifest of format 6"):
        open_artifact(artifact.folder)


def test_every_byte_cut_off_a_manifest_is_noticed(artifact: Artifact):
    path = artifact.folder / "rankrt.json"
    content = path.read_bytes().rstrip()
    for n_bytes in range(0, len(content), 37):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(ArtifactError):
            open_artifact(artifact.folder)


def test_a_missing_file_is_named(artifact: Artifact):
    (artifact.folder / "points.fp32.data").unlink()
    with pytest.raises(ArtifactError, match=r"lacks points\.fp32\.data; copy the whole artifact or export it again"):
        artifact.check_sizes(artifact.manifest.files)


def test_a_file_that_was_cut_is_noticed_by_its_size(artifact: Artifact):
    path = artifact.folder / "points.fp32.data"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="was cut or changed"):
        artifact.check_sizes(artifact.manifest.files)


def test_a_file_with_a_changed_byte_is_noticed_by_its_hash(artifact: Artifact):
    path = artifact.folder / "points.fp32.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    artifact.check_sizes(artifact.manifest.files)
    with pytest.raises(ArtifactError, match=r"is not the file that was exported \(its SHA-256 differs\)"):
        artifact.check_hashes(artifact.manifest.files)


def test_auto_takes_the_most_faithful_variant_that_was_verified(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "both", precisions=["fp16", "fp32"])
    assert choose(artifact, "auto", this_machine()).name == "cpu-fp32"
    assert choose(artifact, "fp16", this_machine()).name == "cpu-fp16"


def test_auto_does_not_take_what_was_not_verified(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "raw", verification=None)
    with pytest.raises(DeviceError, match=r"has no verified variant for cpu; it has cpu-fp32 \(not verified\)"):
        choose(artifact, "auto", this_machine())
    assert choose(artifact, "fp32", this_machine()).verification is None


def test_a_precision_that_is_not_there_names_what_is(artifact: Artifact):
    with pytest.raises(DeviceError, match=r"has no fp16 for cpu; it has cpu-fp32\. Ask for one of these"):
        choose(artifact, "fp16", this_machine())


def test_a_manifest_is_immutable(artifact: Artifact):
    with pytest.raises(AttributeError):
        artifact.manifest.name = "other"  # type: ignore[misc]
    assert msgspec.structs.replace(artifact.manifest, name="other").name == "other"


@pytest.mark.parametrize("location", ["../outside.data", "{folder}/outside.data"])
def test_a_graph_cannot_read_data_outside_its_folder(artifact: Artifact, tmp_path: Path, location: str):
    shutil.copy(artifact.path("points.fp32.data"), tmp_path / "outside.data")
    graph = artifact.path("cpu-fp32.onnx")
    model = onnx.load(graph, load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = location.format(folder=tmp_path)
    onnx.save(model, graph)
    content = {"n_bytes": graph.stat().st_size, "sha256": sha256_of(graph)}
    rewrite(artifact, lambda m: m["files"]["cpu-fp32.onnx"].update(content))
    with pytest.raises(ArtifactError, match="cannot load"):
        Reranker.load(artifact.folder, prepare=False)


@pytest.mark.parametrize("prepare", [False, True])
def test_a_link_does_not_lead_a_graph_outside_its_folder(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: bool
):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))  # where the same artifact was not prepared before
    data = artifact.path("points.fp32.data")
    data.rename(tmp_path / "outside.data")
    data.symlink_to(tmp_path / "outside.data")
    with pytest.raises(ArtifactError, match="cannot load"):
        Reranker.load(artifact.folder, prepare=prepare)
