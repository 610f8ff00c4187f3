"""Child processes: they import what their parent would, and nothing from the folder that the caller is in."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import rankrt
from rankrt.artifact.manifest import Artifact
from rankrt.cli.gpu_doctor import _attention
from rankrt.host.child import _import_path, child_command
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.placement import Placement
from rankrt.server.workers.process import ProcessWorker
from tests.server.support import model_files, run_of
from tests.support import tiny_artifact

SHADOWS = ["random", "queue", "json", "numpy", "onnxruntime", "tokenizers", "msgspec", "rankrt", "sitecustomize"]


@pytest.fixture
def callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it is on the import path, as after `python -m`, and its files would say that they ran."""
    folder = tmp_path / "callers"
    for i, name in enumerate(SHADOWS):
        path = folder / (f"{name}.py" if i % 2 else f"{name}/__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(folder / 'ran')!r}, 'a').write('{name}\\n')\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", "")
    return folder


def ran(callers: Path) -> list[str]:
    """The caller's files that were imported."""
    return (callers / "ran").read_text().split() if (callers / "ran").exists() else []


def output(command: Sequence[str]) -> str:
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return process.stdout + process.stderr


def test_the_folder_is_dangerous(callers: Path):
    """`python -m` in it runs its files: what follows would be seen."""
    subprocess.run([sys.executable, "-c", "import numpy, random"], check=True)
    assert {"numpy", "random"} <= set(ran(callers))


def test_a_worker_imports_nothing_of_the_caller(callers: Path, tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "tiny")
    worker = ProcessWorker(1)
    try:
        worker.load(model_files(artifact))
        assert worker.run(0, run_of([5, 6])).tolist() == [3.0]
    finally:
        worker.close()
    assert ran(callers) == []


def test_the_doctor_imports_nothing_of_the_caller(callers: Path, tmp_path: Path):
    """Without a GPU its process says that there is none, which is our own sentence."""
    artifact: Artifact = tiny_artifact(tmp_path / "tiny", targets=("cpu", "cuda"))
    placement = Placement(
        artifact=artifact, variant=artifact.manifest.variants[1], device=Device("cuda"), host=this_host()
    )
    assert "GPU" in _attention(placement).detail
    assert ran(callers) == []


def test_the_command_imports_nothing_of_the_caller(callers: Path):
    """The script that pip writes has its own folder on the import path, and not the current one."""
    script = callers.parent / "bin" / "rankrt"
    script.parent.mkdir()
    script.write_text("import sys\nfrom rankrt.cli.main import main\nsys.exit(main())\n")
    assert output([sys.executable, str(script), "--version"]) == f"rankrt {rankrt.__version__}\n"
    assert ran(callers) == []


def test_pythonpath_is_the_user_s_own_wish_even_for_the_current_folder(callers: Path, monkeypatch: pytest.MonkeyPatch):
    assert str(callers) not in _import_path("rankrt.cli.main")
    monkeypatch.setenv("PYTHONPATH", ":")
    assert str(callers) not in _import_path("rankrt.cli.main"), "an empty name means the current folder, by accident"
    monkeypatch.setenv("PYTHONPATH", str(callers))
    assert str(callers) in _import_path("rankrt.cli.main")


def test_a_child_has_its_parent_s_rankrt_wherever_that_came_from(tmp_path: Path):
    """Here from the current folder, although another one is installed."""
    copy = tmp_path / "rankrt"
    shutil.copytree(Path(rankrt.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "where.py").write_text("import rankrt\nprint(rankrt.__file__)\n")
    parent = (
        "import subprocess; from rankrt.host.child import child_command; subprocess.run(child_command('rankrt.where'))"
    )
    process = subprocess.run([sys.executable, "-c", parent], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout == f"{copy / '__init__.py'}\n"


def test_a_module_of_another_package_is_found_where_its_parent_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tool.py").write_text("import sys\nprint(sys.argv[1:])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert output(child_command("theirs.tool", "a", "b c")) == "['a', 'b c']\n"
