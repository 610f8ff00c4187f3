"""Builds the library of kernels with Clang, as the package `ziglang` brings it: python kernels/build.py FILE."""

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
# Each instruction set is compiled for processors that have it; the rest for all.
PROCESSORS = {
    "instruction_sets/avx2.cpp": ("-mcpu=haswell",),
    "instruction_sets/avx_vnni.cpp": ("-mcpu=haswell+avxvnni",),
    # Clang would split its vectors of 512 bits otherwise.
    "instruction_sets/avx512_vnni.cpp": ("-mcpu=x86_64_v4+avx512vnni", "-mprefer-vector-width=512"),
    "instruction_sets/choose.cpp": (),
    "library.cpp": (),
}
FLAGS = (
    *("-target", "x86_64-linux-gnu.2.17", "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fno-sanitize=all"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
)


def build(library: Path, *flags: str) -> None:
    """Compile the sources and link them into a library."""
    compiler = (sys.executable, "-m", "ziglang", "c++", *FLAGS, *flags)
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{Path(name).stem}.o") for name in PROCESSORS]
        for (name, processor), object_ in zip(PROCESSORS.items(), objects, strict=True):
            subprocess.run([*compiler, *processor, "-c", str(SOURCES / name), "-o", object_], check=True)
        subprocess.run([*compiler, "-shared", "-s", *objects, "-o", str(library)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
