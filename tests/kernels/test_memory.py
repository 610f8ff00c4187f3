"""Memory and undefined behaviour: guarded pages, sanitizers, memory that runs out. Each has a process of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels.support import TESTED_LIBRARY

pytestmark = pytest.mark.usefixtures("library")

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = ("linear", "float_linear", "attention", "float_attention")
INSTRUCTION_SETS = ["avx2", "avx_vnni", "avx512_vnni"]
# Clang's group "undefined", but for what needs a runtime library. As arguments of the compiler itself they cannot be
# turned off by others.
UNDEFINED = (
    "alignment,array-bounds,bool,builtin,enum,float-cast-overflow,integer-divide-by-zero,nonnull-attribute,null,"
    "object-size,pointer-overflow,return,returns-nonnull-attribute,shift-base,shift-exponent,signed-integer-overflow,"
    "unreachable,vla-bound"
)
# ONNX Runtime calls this function as well, and has to get what it asks for.
NO_MEMORY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void *aligned_alloc(size_t alignment, size_t size) {
    Dl_info caller;
    void *memory = NULL;
    const int is_known = dladdr(__builtin_return_address(0), &caller);
    if (is_known && strstr(caller.dli_fname, "LIBRARY")) return NULL;
    return posix_memalign(&memory, alignment, size) ? NULL : memory;
}
"""


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"RANKRT_TEST_LIBRARY": str(TESTED_LIBRARY), "OMP_NUM_THREADS": "1", **os.environ, **variables}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def runs_here(instruction_set: str) -> bool:
    program = "import tests.kernels.support as s; print(s.why_not())"
    return python("-c", program, RANKRT_KERNELS=instruction_set).stdout.strip() == "None"


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """What the operators wrote with each instruction set that this processor has."""
    found = {}
    for name in filter(runs_here, INSTRUCTION_SETS):
        done = python("-m", "tests.kernels.guarded", RANKRT_KERNELS=name)
        # A read or a write outside of an array ends the program by a signal.
        assert done.returncode == 0, f"{name} after {done.stdout[-200:]}: {done.stderr[-2000:]}"
        found[name] = done.stdout
    return found


def test_nothing_outside_of_an_array_is_read_or_written(written: dict[str, str]):
    assert written
    assert all(len(text.splitlines()) >= 400 for text in written.values())


def test_all_instruction_sets_write_the_same_bits(written: dict[str, str]):
    if len(written) < 2:
        pytest.skip(f"this processor has only {', '.join(written)}")
    first, *others = written.values()
    assert all(other.splitlines() == first.splitlines() for other in others)


def test_an_unknown_instruction_set_is_an_error_of_the_session():
    program = "from tests.kernels.support import run, offsets_of; run('Places', row_offsets=offsets_of([1]))"
    done = python("-c", program, RANKRT_KERNELS="avx9000")
    assert done.returncode == 1
    assert "no kernels of rankrt run on this processor" in done.stderr


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that let tests run over a library which ends the process at the first undefined behaviour."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang, the compiler, is not installed")
    from kernels.build import build

    # Not optimised, it is compiled in a seventh of the time.
    flags = ["-O0", "-Xclang", f"-fsanitize={UNDEFINED}", "-Xclang", f"-fsanitize-trap={UNDEFINED}"]
    variables = {}
    # The compiler's package has no runtime of AddressSanitizer; GCC's has the same interface. It looks for what throws
    # C++'s exceptions when it is loaded, and ONNX Runtime throws some.
    runtimes = [file_of_gcc(name) for name in ("libasan.so", "libstdc++.so.6")]
    if all(runtimes):
        flags += ["-Xclang", "-fsanitize=address"]
        variables = {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    library = tmp_path_factory.mktemp("sanitized") / "rankrt_kernels.so"
    build(library, *flags)
    yield variables | {"RANKRT_TEST_LIBRARY": str(library)}


def file_of_gcc(name: str) -> str:
    """Return the path of one of GCC's files; an empty text without it."""
    if shutil.which("gcc") is None:
        return ""
    asked = subprocess.run(["gcc", f"-print-file-name={name}"], text=True, capture_output=True, check=True)
    path = asked.stdout.strip()
    return path if Path(path).is_absolute() else ""


def test_the_operators_pass_their_tests_under_sanitizers(sanitized: dict[str, str]):
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("tokens", *OPERATORS)]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, **sanitized)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_avx2_passes_under_sanitizers_and_writes_the_same_bits(sanitized: dict[str, str], written: dict[str, str]):
    done = python("-m", "tests.kernels.guarded", **sanitized, RANKRT_KERNELS="avx2")
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-3000:]
    assert done.stdout.splitlines() == written["avx2"].splitlines()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["Attention", "FloatAttention"])
def test_memory_that_is_missing_is_an_error_of_the_run(name: str, threads: int, tmp_path: Path):
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang, the compiler, is not installed")
    (tmp_path / "none.c").write_text(NO_MEMORY.replace("LIBRARY", TESTED_LIBRARY.name))
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17", "-shared", "-fPIC"]
    subprocess.run([*compiler, "none.c", "-o", "none.so", "-ldl"], cwd=tmp_path, check=True)
    program = f"""
import numpy as np
from tests.kernels.support import run, offsets_of
x = np.ones((10, 8), np.float32)
given = {{"queries": x, "keys": x, "values": x, "row_offsets": offsets_of([4, 6])}}
run("{name}", {{"n_heads": 2, "first_only": 0}}, {threads}, **given)
"""
    done = python("-c", program, LD_PRELOAD=str(tmp_path / "none.so"))
    assert done.returncode == 1
    assert "there is not enough memory for attention" in done.stderr
