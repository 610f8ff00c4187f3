"""Results that are made once and cached: converted checkpoints and compiled servers.

A conversion runs in its system's environment. Its time and memory are measured there and kept beside the result. So no
run converts twice, and every run knows the cost.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.harness.environments import cache_folder, folder_of, python_of
from benchmarks.harness.worker import ROOT, Budget, SystemFailed, environment, last_words
from benchmarks.systems import CONVERSIONS, PROGRAMS, Conversion
from rankrt.files.folders import made_once, size_of

_LIMIT_S = 1800
_COST = "cost.json"
_RESULT = "model"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of a conversion, without the ones that it starts from."""

    seconds: float
    peak_mb: float
    size_mb: float


def convert(name: str, checkpoint: Path, sha256: str, budget: Budget) -> Path:
    """Return the folder of a converted checkpoint; convert it the first time. Raises SystemFailed with the reason."""
    conversion = CONVERSIONS[name]
    source = convert(conversion.of, checkpoint, sha256, budget) if conversion.of else checkpoint
    python = python_of(conversion.environment)
    folder = _folder(name, sha256)
    made_once(folder, lambda unfinished: _make(name, conversion, source, unfinished, python, budget))
    return folder / _RESULT


def compile_program(name: str, budget: Budget) -> Path:
    """Return the folder of a compiled program; compile it the first time. Raises SystemFailed with the reason."""
    program = PROGRAMS[name]
    python = python_of(program.environment)
    folder = cache_folder() / "programs" / f"{name}-{_hash_of([*_sources_of(program)])}"
    made_once(folder, lambda unfinished: _make(name, program, python, unfinished, python, budget))
    return folder / _RESULT


def cost_of(name: str, sha256: str) -> Cost:
    """Return the cost of a conversion when it was made."""
    return msgspec.json.decode((_folder(name, sha256) / _COST).read_bytes(), type=Cost)


def _folder(name: str, sha256: str) -> Path:
    """Return the folder of a result. It depends on the checkpoint, the environment and our code."""
    return cache_folder() / "models" / f"{name}-{_hash_of([sha256, *_sources_of(CONVERSIONS[name])])}"


def _sources_of(conversion: Conversion) -> Iterator[str]:
    module = conversion.place.partition(":")[0].rpartition(".")[2]
    yield folder_of(conversion.environment).name
    yield (ROOT / "benchmarks" / "systems" / f"{module}.py").read_text()
    if module == "rankrt_export":
        yield from (path.read_text() for path in sorted((ROOT / "export").rglob("*.py")))
    if conversion.of:
        yield from _sources_of(CONVERSIONS[conversion.of])


def _hash_of(parts: Sequence[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _make(name: str, made: Conversion, source: Path, folder: Path, python: Path, budget: Budget) -> None:
    print(f"making {name}", file=sys.stderr)
    log = folder / "log.txt"
    command = [str(python), "-m", "benchmarks.harness.converter", made.place, str(source), str(folder / _RESULT)]
    started = time.perf_counter()
    with log.open("wb") as words:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(budget.n_threads), stdout=words, stderr=words, start_new_session=True
        )
        try:
            status = process.wait(timeout=_LIMIT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SystemFailed(f"making {name} took longer than {_LIMIT_S} s") from None
            raise
    if status:
        raise SystemFailed(f"making {name} failed: {last_words(log)} (status {status})")
    peak_mb = float((folder / _RESULT / "peak_mb").read_text())
    (folder / _RESULT / "peak_mb").unlink()
    cost = Cost(seconds=time.perf_counter() - started, peak_mb=peak_mb, size_mb=size_of(folder / _RESULT) / 1e6)
    (folder / _COST).write_bytes(msgspec.json.encode(cost))
