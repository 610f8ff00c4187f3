"""What a process imports before its first score: nothing that the score does not need."""

import subprocess
import sys
from pathlib import Path

import pytest

import rankrt
from rankrt import Reranker
from rankrt.artifact.manifest import Artifact


def imported_by(code: str) -> set[str]:
    """Run code in a process of its own, and return the modules that it has imported at the end."""
    told = f"import sys\n{code}\nprint('imported', *sys.modules)"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    return set(found.partition("imported")[2].split())


def test_the_package_alone_imports_no_engine_and_no_numpy():
    assert imported_by("import rankrt").isdisjoint({"numpy", "onnxruntime", "tokenizers", "msgspec"})


def test_every_name_of_the_package_is_there_though_it_is_imported_later():
    assert set(rankrt.__all__) <= set(dir(rankrt))
    assert all(hasattr(rankrt, name) for name in rankrt.__all__)
    assert rankrt.Reranker is Reranker
    with pytest.raises(AttributeError, match="module 'rankrt' has no attribute 'Rerankr'"):
        _ = rankrt.Rerankr


def test_a_start_from_the_cache_imports_only_what_a_score_needs(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each of these takes 5 to 20 ms: locks, versions, progress bars, and what runs on other hardware."""
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    score = f"from rankrt import Reranker; Reranker.load({str(artifact.folder)!r}, device='cpu').score([('a', 'b')])"
    imported_by(score)  # prepares the model
    needless = {"filelock", "importlib.metadata", "tqdm", "huggingface_hub", "openvino", "rankrt.loading.prepare"}
    needless |= {f"rankrt.backends.{name}" for name in ("cuda", "gpu", "tensorrt_engines", "cpu_decoder", "openvino")}
    assert imported_by(score) & needless == {"rankrt.backends.openvino"}


def test_a_command_without_a_terminal_imports_no_progress_bar(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It asks for its own version, for which it reads what is installed: up to 150 ms."""
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    documents = tmp_path / "documents.txt"
    documents.write_text("two\nthree\n")
    command = ["rerank", str(artifact.folder), "--query", "one", "--documents", str(documents), "--device", "cpu"]
    rerank = f"from rankrt.cli.main import main; main({command!r})"
    imported_by(rerank)  # prepares the model
    assert imported_by(rerank).isdisjoint({"tqdm", "importlib.metadata", "email", "filelock", "huggingface_hub"})
