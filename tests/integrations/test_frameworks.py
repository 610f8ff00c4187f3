"""A framework that is absent or too old, and the models that adapters take."""

import importlib
import sys
from pathlib import Path

import pytest

from rankrt import InputError, MissingExtra, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.integrations.frameworks import framework, loaded

ADAPTERS = {
    "langchain": ("langchain-core", "1.0"),
    "llama_index": ("llama-index-core", "0.14"),
    "haystack": ("haystack-ai", "3.0"),
    "pyterrier": ("pyterrier", "1.1"),
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that goes before all others."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(folder: Path, distribution: str, release: str) -> None:
    information = folder / f"{distribution.replace('-', '_')}-{release}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {release}\n")


@pytest.mark.parametrize(("name", "needed"), ADAPTERS.items(), ids=ADAPTERS.keys())
def test_a_framework_that_is_too_old_is_named_with_the_release_that_is_needed(
    installed: Path, monkeypatch: pytest.MonkeyPatch, name: str, needed: tuple[str, str]
):
    distribution, least = needed
    install(installed, distribution, "0.1.2rc1")
    monkeypatch.delitem(sys.modules, f"rankrt.integrations.{name}", raising=False)
    extra = name.replace("_", "-")
    with pytest.raises(MissingExtra) as refused:
        importlib.import_module(f"rankrt.integrations.{name}")
    assert str(refused.value) == (
        f"this adapter needs {distribution} {least} or newer, and 0.1.2rc1 is installed:"
        f" pip install --upgrade 'rankrt[{extra}]'"
    )


@pytest.mark.parametrize("release", ["1.4", "1.4.0", "1.10", "2.0.0.post1", "10.0"])
def test_newer_releases_are_enough(installed: Path, release: str):
    install(installed, "some-framework", release)
    with framework("some-framework", least="1.4", extra="some"):
        pass


def test_a_framework_that_is_absent_is_an_import_error_with_the_command():
    expected = r"needs no-such-thing 1.4 or newer, which is not installed: pip install 'rankrt\[some\]'"
    with pytest.raises(ImportError, match=expected), framework("no-such-thing", least="1.4", extra="some"):
        pass


def test_a_model_is_a_folder_or_a_loaded_reranker(artifact: Artifact, reranker: Reranker):
    assert loaded(reranker, None) is reranker
    with loaded(str(artifact.folder), {"max_length": 32}) as own:
        assert own.rules.max_length == 32
    with pytest.raises(InputError, match="load_options are for a model that is loaded here"):
        loaded(reranker, {"max_length": 32})
    with pytest.raises(InputError, match="model is NoneType, expected a folder, a hub id or a loaded Reranker"):
        loaded(None, None)


def test_every_adapter_has_an_extra_with_the_same_bound():
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name, (distribution, least) in {**ADAPTERS, "mteb": ("mteb", "2.0")}.items():
        assert f'\n{name.replace("_", "-")} = ["{distribution}>={least}"]\n' in project
