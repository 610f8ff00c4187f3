"""What is published: which wheels have the library of kernels, what the source archive has, and what a user reads."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rankrt import kernels

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "kernels").exists():
    pytest.skip("needs the repository", allow_module_level=True)
pytest.importorskip("hatchling")
tags = pytest.importorskip("packaging.tags")

LIBRARY = Path("runtime", "rankrt", "kernels", "rankrt_kernels.linux-x86_64.so")
PLATFORM = "manylinux_2_17_x86_64"
needs_compiler = pytest.mark.skipif(
    PLATFORM not in tags.platform_tags() or importlib.util.find_spec("ziglang") is None,
    reason="needs Linux with glibc on x86-64, and ziglang",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What wheels are made of, without a library."""
    for folder in ("runtime", "export", "finetune", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / "tree" / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path / "tree")
    return tmp_path / "tree"


def asked(tree: Path, call: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call what pip calls; the last line it prints is the answer."""
    program = f"from hatchling.build import *; print({call})"
    environment = os.environ | {"RANKRT_BUILD_KERNELS": "1"} | variables
    return subprocess.run([sys.executable, "-c", program], cwd=tree, env=environment, capture_output=True, text=True)


def answer(tree: Path, call: str, **variables: str) -> str:
    done = asked(tree, call, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def empty_tables(tree: Path) -> None:
    """Leave the kernels away, which takes most of the time of a build."""
    for source in (tree / "kernels" / "instruction_sets").glob("avx*.cpp"):
        (table,) = set(re.findall(r"const Kernels (\w+)", source.read_text()))
        source.write_text(
            f'#include "../numbers/kernels.h"\nextern const Kernels {table};\nconst Kernels {table} = {{}};'
        )


@needs_compiler
def test_a_wheel_for_linux_on_x86_64_has_the_library_that_anyone_gets_from_these_sources(tree: Path, tmp_path: Path):
    assert "ziglang==" in answer(tree, "get_requires_for_build_wheel()")
    name = answer(tree, f"build_wheel({str(tmp_path)!r})")
    assert name.endswith(f"-py3-none-{PLATFORM}.whl")
    with zipfile.ZipFile(tmp_path / name) as wheel:
        library = wheel.read(f"rankrt/kernels/{LIBRARY.name}")
    assert library == (tree / LIBRARY).read_bytes()
    assert kernels.LIBRARY.name == LIBRARY.name
    needed = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library)}
    assert max(needed) <= 17, "it needs a newer glibc than the wheel's tag says"
    assert set(re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)", library)) <= {b"libc.so.6", b"libm.so.6"}
    if (ROOT / LIBRARY).exists():
        assert library == (ROOT / LIBRARY).read_bytes(), "this tree has another library: run python kernels/build.py"


@needs_compiler
def test_a_library_is_built_again_only_after_a_change(tree: Path, tmp_path: Path):
    def built() -> int:
        subprocess.run([sys.executable, tree / "kernels" / "build.py", tmp_path / "library.so"], check=True)
        return (tmp_path / "library.so").stat().st_mtime_ns

    empty_tables(tree)
    first = built()
    assert built() == first
    with (tree / "kernels" / "numbers" / "kernels.h").open("a") as header:
        header.write("// changed\n")
    assert built() != first
    assert [file.name for file in tmp_path.glob("*.so")] == ["library.so"]


@needs_compiler
def test_an_installation_whose_compiler_fails_says_why_and_how_to_do_without(tree: Path, tmp_path: Path):
    empty_tables(tree)
    (tree / "kernels" / "library.cpp").write_text("int main() { return missing; }")
    done = asked(tree, f"build_wheel({str(tmp_path)!r})")
    assert done.returncode != 0
    assert "library.cpp:1:21: error: use of undeclared identifier 'missing'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("rankrt's kernels cannot be compiled; the reason is above.")
    assert "RANKRT_BUILD_KERNELS=0" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.whl"))


def test_a_wheel_without_kernels_is_for_all_systems_and_takes_no_library_that_lies_in_the_tree(
    tree: Path, tmp_path: Path
):
    (tree / LIBRARY).write_bytes(b"of another system")
    assert answer(tree, "get_requires_for_build_wheel()", RANKRT_BUILD_KERNELS="0") == "[]"
    name = answer(tree, f"build_wheel({str(tmp_path)!r})", RANKRT_BUILD_KERNELS="0")
    assert name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert [file for file in wheel.namelist() if file.endswith(".so")] == []
        assert "rankrt/kernels/__init__.py" in wheel.namelist()


def test_a_source_archive_has_all_that_the_library_is_built_from(tree: Path, tmp_path: Path):
    (tree / LIBRARY).write_bytes(b"of this system")
    with tarfile.open(tmp_path / answer(tree, f"build_sdist({str(tmp_path)!r})")) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    sources = {file.relative_to(tree).as_posix() for file in (tree / "kernels").rglob("*") if file.is_file()}
    assert sources <= files
    assert not [file for file in files if file.endswith(".so")]


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("kernels_hook", ROOT / "kernels" / "hook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("system", "builds"),
    [
        ("manylinux_2_41_x86_64 manylinux_2_17_x86_64 linux_x86_64", True),
        ("manylinux_2_12_x86_64 linux_x86_64", False),
        ("musllinux_1_2_x86_64 linux_x86_64", False),
        ("manylinux_2_41_aarch64 manylinux_2_17_aarch64 linux_aarch64", False),
        ("macosx_14_0_x86_64", False),
        ("macosx_14_0_arm64", False),
        ("win_amd64", False),
    ],
)
def test_a_system_that_cannot_load_the_library_builds_none(
    hook: Any, monkeypatch: pytest.MonkeyPatch, system: str, builds: bool
):
    monkeypatch.delenv("RANKRT_BUILD_KERNELS", raising=False)
    monkeypatch.setattr(hook, "platform_tags", system.split)
    assert hook.builds_kernels() == builds
