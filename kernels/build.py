"""Builds the library of kernels with Clang, as the package `ziglang` brings it: python kernels/build.py [FILE].

The same sources, flags and compiler give the same bytes, in any folder. A library that has them already is kept.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = SOURCES.parent / "runtime" / "rankrt" / "kernels" / "rankrt_kernels.linux-x86_64.so"
# Each instruction set is compiled for processors that have it; the rest for all.
PROCESSORS = {
    "instruction_sets/avx2.cpp": ("-mcpu=haswell",),
    "instruction_sets/avx_vnni.cpp": ("-mcpu=haswell+avxvnni",),
    # Clang would split its vectors of 512 bits otherwise.
    "instruction_sets/avx512_vnni.cpp": ("-mcpu=x86_64_v4+avx512vnni", "-mprefer-vector-width=512"),
    "instruction_sets/choose.cpp": (),
    "library.cpp": (),
}
# The glibc of manylinux_2_17, which is the tag of the wheel.
TARGET = ("-target", "x86_64-linux-gnu.2.17", "-fno-sanitize=all")
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-exceptions", "-fno-rtti"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
)
# Of the system only libc and libm. Zig would compile the libraries of C++ and of the compiler first, for 40 s.
LINK = ("-shared", "-s", "-nolibc")
SYSTEM = ("-lm", "-lc")
# A function of the others is an error of the linker, and not one of the process that loads the library.
CLOSED = ("-Wl,-z,defs",)


def build(library: Path, *flags: str) -> None:
    """Compile the sources and link them into a library, unless it was built from them.

    Flags come last. With those of a sanitizer the library needs a process that has the sanitizer's functions. Raises
    CalledProcessError if the compiler fails, and PackageNotFoundError without ziglang.
    """
    build_id = _build_id(flags)
    if library.exists() and build_id in library.read_bytes():
        return
    with tempfile.TemporaryDirectory() as folder:
        # A cache of its own, unless the user names one: nothing stays in the home, which may not be writable.
        environment = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder} | os.environ

        def run(language: str, *arguments: str | Path) -> None:
            command = (sys.executable, "-m", "ziglang", language, *TARGET, *arguments, *flags)
            subprocess.run(command, env=environment, check=True)

        def make_object(source: str) -> Path:
            object_ = Path(folder) / f"{Path(source).stem}.o"
            run("c++", *FLAGS, *PROCESSORS[source], "-c", SOURCES / source, "-o", object_)
            return object_

        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(make_object, PROCESSORS))
        linked = Path(folder) / library.name
        closed = () if flags else CLOSED
        run("cc", *LINK, *closed, f"-Wl,--build-id=0x{build_id.hex()}", *objects, *SYSTEM, "-o", linked)
        # Put in its place at once: a process may have the old library mapped.
        beside = library.with_name(f"{os.getpid()}-{library.name}")
        shutil.copyfile(linked, beside)
        beside.replace(library)


def _build_id(flags: tuple[str, ...]) -> bytes:
    """Return a hash of all that the library's bytes depend on; the library has it as its build id."""
    made_with = (version("ziglang"), TARGET, FLAGS, LINK, SYSTEM, CLOSED, PROCESSORS, flags)
    digest = hashlib.sha256(repr(made_with).encode())
    for source in sorted(path for suffix in ("cpp", "h") for path in SOURCES.rglob(f"*.{suffix}")):
        digest.update(f"\n{source.relative_to(SOURCES).as_posix()}\n".encode() + source.read_bytes())
    return digest.digest()


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY)
    except PackageNotFoundError:
        sys.exit("ziglang, which compiles the kernels, is not installed. Install it: pip install --group kernels")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the compiler has said why
