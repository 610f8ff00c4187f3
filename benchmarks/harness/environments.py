"""The environments of systems: one for each lock file, built on demand, cached, independent of each other.

    python -m benchmarks.harness.environments NAME...          build them
    python -m benchmarks.harness.environments --lock NAME...   pin the versions for locks/NAME.in again; build nothing

`locks/NAME.in` has the requirements, `locks/NAME.txt` the exact versions.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.worker import ROOT, SystemFailed
from rankrt.files.folders import made_once

LOCKS = Path(__file__).resolve().parents[1] / "locks"
# llama.cpp is compiled for this CPU. This takes minutes, but over half an hour on two busy cores.
_LIMIT_S = 3600
_QUIET = ["--quiet", "--disable-pip-version-check"]


def cache_folder() -> Path:
    """Return the folder of environments, converted models and logs: RANKRT_BENCH_CACHE, or in the user's cache."""
    if named := os.environ.get("RANKRT_BENCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankrt-benchmarks"


def python_of(name: str) -> Path:
    """Return the interpreter of an environment; build it the first time.

    Raises SystemFailed with pip's reason.
    """
    folder = made_once(folder_of(name), lambda unfinished: _build(unfinished, LOCKS / f"{name}.txt"))
    return folder / "bin" / "python"


def folder_of(name: str) -> Path:
    """Return the folder of an environment. It depends on the lock, the Python and the checkout."""
    lock = LOCKS / f"{name}.txt"
    if not lock.exists():
        raise SystemFailed(f"there is no {lock.relative_to(ROOT)}; the environments are {', '.join(names())}")
    content = f"{lock.read_text()}{sys.version_info[:2]}{ROOT if '--editable' in lock.read_text() else ''}"
    return cache_folder() / "environments" / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def pinned(name: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions that an environment's lock has of some packages."""
    pairs = (line.split("==") for line in (LOCKS / f"{name}.txt").read_text().splitlines() if "==" in line)
    versions = dict(pairs)
    return {package: versions[package] for package in packages}


def names() -> list[str]:
    """Return the names of all environments."""
    return sorted(path.stem for path in LOCKS.glob("*.txt"))


def _build(folder: Path, requirements: Path) -> None:
    # The folder gets its name at the end. So an environment's programs are called as modules, never by their scripts.
    print(f"building the environment {requirements.stem} in {folder.parent}", file=sys.stderr)
    venv.create(folder, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")
    _pip(python, "install", *_QUIET, "--upgrade", "pip")
    _pip(python, "install", *_QUIET, "--requirement", str(requirements))


def _pip(python: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [python, "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise SystemFailed(f"pip {arguments[0]} took longer than {_LIMIT_S} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise SystemFailed(f"it cannot be installed: {errors[0] if errors else done.stderr[-300:]}")
    return done.stdout


def lock(name: str) -> None:
    """Resolve an environment again, install nothing, and write the versions."""
    wanted = LOCKS / f"{name}.in"
    resolve = ["install", *_QUIET, "--dry-run", "--ignore-installed", "--report", "-", "--requirement", str(wanted)]
    found = json.loads(_pip(sys.executable, *resolve))["install"]
    named = [part["metadata"] for part in found if "dir_info" not in part["download_info"]]
    # Not every index has the build "+cpu". The version decides.
    pins = {f"{part['name']}=={part['version'].partition('+')[0]}" for part in named}
    own = [line for line in wanted.read_text().splitlines() if line.startswith("--editable")]
    head = f"# Made of {wanted.name}: python -m benchmarks.harness.environments --lock {name}"
    (LOCKS / f"{name}.txt").write_text("\n".join([head, *own, *sorted(pins, key=str.lower)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if none is given")
    parser.add_argument("--lock", action="store_true", help="resolve again, and write locks/NAME.txt")
    options = parser.parse_args()
    for name in options.names or names():
        try:
            if options.lock:
                lock(name)
            else:
                print(f"{name}: {python_of(name)}")
        except SystemFailed as failure:
            print(f"{name}: {failure}")


if __name__ == "__main__":
    main()
