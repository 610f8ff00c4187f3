"""A CUDA that computes nothing, for the real onnxruntime-gpu: it is built here, and what was asked of it is read here.

`fake_cuda/` holds the libraries. RANKRT_GPU_PYTHON names an interpreter whose environment has onnxruntime-gpu and what
rankrt's runtime needs. Its folder `cuda` has CUDA's headers. They are apart from what can be imported, because the
wheels with the headers have the real libraries, too. `make test-fake-gpu` makes such an environment.
"""

import json
import os
import shutil
import subprocess
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).with_name("fake_cuda")
ROOT = Path(__file__).resolve().parents[2]
# Library, source, and whether its symbols carry the library's name as their version, which the provider asks for.
LIBRARIES = (
    ("libcudart.so.13", "runtime.cpp", True),
    ("libcublas.so.13", "blas.cpp", True),
    ("libcublasLt.so.13", "blas.cpp", True),
    ("libcudnn.so.9", "cudnn.cpp", False),
    ("libcuda.so.1", "driver.cpp", False),
    ("libnvidia-ml.so.1", "driver.cpp", False),
    ("libcurand.so.10", "nothing.cpp", False),
)
# Scores the lines of standard input, a list of lengths each, as rows of one run; marks where each begins in the log.
PROBE = """
    import json, os, sys
    from pathlib import Path
    import numpy as np
    from rankrt.artifact.manifest import open_artifact
    from rankrt.backends.gpu import placements
    from rankrt.host.device import Device
    from rankrt.host.host import this_host
    from rankrt.loading.choose import place_on_gpu
    from rankrt.text.pairs import Encoded
    from rankrt.loading.open import open_gpu

    asked = json.load(sys.stdin)
    artifact, device = open_artifact(Path(asked["artifact"])), Device("cuda")
    (placement,) = place_on_gpu(artifact, device, asked["precision"], this_host())
    backend = open_gpu(placement, memory_bytes=asked["memory_bytes"])
    for lengths in asked["runs"]:
        encoded = Encoded.of_rows([np.full(length, 5, np.int32) for length in lengths])
        with open(os.environ["FAKE_CUDA_LOG"], "a") as log:
            log.write("RUN\\n")
        backend.logits(encoded)
    with open(os.environ["FAKE_CUDA_LOG"], "a") as log:
        log.write("RUN\\n")
    print(json.dumps([placements(found.session) for found in backend.sessions]))
"""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a process asked of the fake CUDA.

    placements  nodes of the graph by provider
    loading     the log's lines before the first run
    runs        the log's lines of each run; that of closing is left out
    """

    placements: dict[str, int]
    loading: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]

    @property
    def held_bytes(self) -> int:
        """The memory that is held at the end: cudaMalloc is never undone while a session lives."""
        mallocs = [line for part in (self.loading, *self.runs) for line in part if line.startswith("MALLOC")]
        return int(mallocs[-1].split()[3])


def kernels(lines: Sequence[str]) -> Counter[str]:
    """Return how often each kernel was launched, by the name in its source."""
    return Counter(line.split()[1] for line in lines if line.startswith("KERNEL"))


def python() -> str | None:
    """Return the interpreter to run, or None."""
    return os.environ.get("RANKRT_GPU_PYTHON")


def build(folder: Path, interpreter: str) -> None:
    """Compile the libraries with the system's C++ compiler and the headers of that interpreter's environment."""
    headers = Path(interpreter).parents[1] / "cuda" / "nvidia" / "cu13" / "include"
    (folder / "nothing.cpp").write_text("int nothing;\n")
    for library, source, is_versioned in LIBRARIES:
        path = SOURCES / source if (SOURCES / source).exists() else folder / source
        command = [compiler() or "c++", "-O1", "-shared", "-fPIC", f"-I{headers}", str(path)]
        command += ["-o", str(folder / library), f"-Wl,-soname,{library}", "-lpthread"]
        if is_versioned:
            (folder / f"{library}.map").write_text(f"{library} {{ *; }};\n")
            command.append(f"-Wl,--version-script={folder / library}.map")
        subprocess.run(command, check=True)


def compiler() -> str | None:
    """Return the system's C++ compiler."""
    return shutil.which("c++") or shutil.which("g++")


def environment(libraries: Path) -> dict[str, str]:
    """Return the environment of a process that sees the fake CUDA, rankrt's runtime and the benchmarks."""
    folders = os.pathsep.join(map(str, (ROOT / "runtime", ROOT)))
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": folders}


def trace(
    libraries: Path,
    artifact: Path,
    precision: str,
    runs: Sequence[Sequence[int]],
    *,
    sm: int = 90,
    memory_bytes: int | None = None,
) -> Trace:
    """Score rows of these lengths in a process that sees the fake CUDA, and return what it asked."""
    log = libraries / "log"
    log.unlink(missing_ok=True)
    asked: dict[str, Any] = {"artifact": str(artifact), "precision": precision, "memory_bytes": memory_bytes}
    process = subprocess.run(
        [python() or "", "-P", "-c", textwrap.dedent(PROBE)],
        input=json.dumps({**asked, "runs": [list(run) for run in runs]}),
        env={**environment(libraries), "FAKE_CUDA_LOG": str(log), "FAKE_CUDA_SM": str(sm)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    parts = [part.strip().splitlines() for part in log.read_text().split("RUN\n")]
    (placements,) = json.loads(process.stdout.splitlines()[-1])
    return Trace(placements=placements, loading=tuple(parts[0]), runs=tuple(map(tuple, parts[1:-1])))
