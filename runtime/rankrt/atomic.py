"""Folders that appear whole or not at all, and the caches that hold them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside the given one that takes its name at the end, or is removed if anything fails.

    The folder itself must not exist by then. A process that is killed leaves `.unfinished-*`, never half a folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".unfinished-{folder.name}-", dir=folder.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private, but what it becomes is an ordinary folder
        yield unfinished
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder after one process, whichever comes first, has filled it with `make`; the others wait."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.exists():
                with new_folder(folder) as unfinished:
                    make(unfinished)
    return folder


def cache_folder() -> Path:
    """Return the folder that RANKRT_CACHE names, or rankrt's in the user's cache folder."""
    if named := os.environ.get("RANKRT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankrt"


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.glob("**/*") if file.is_file())
