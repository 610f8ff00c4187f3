"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankrt.files.locks import lock_file

UNFINISHED = ".unfinished-"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside the given one. At the end it takes that name; after an error it is removed.

    The given folder must not exist at the end. A process that is killed leaves `.unfinished-*`, never half a folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f"{UNFINISHED}{folder.name}-{os.urandom(4).hex()}"
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder after the first process has filled it with `make`; other processes wait."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(lock_of(folder)):
            if not folder.exists():
                with new_folder(folder) as unfinished:
                    make(unfinished)
    return folder


def lock_of(folder: Path) -> Path:
    """Return the lock file that a process holds while it makes a folder."""
    return folder.parent / f".{folder.name}.lock"


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, as far as they can be read and are still there."""
    n_bytes = 0
    for file in folder.glob("**/*"):
        with suppress(OSError):
            n_bytes += file.lstat().st_size if not file.is_dir() else 0
    return n_bytes
