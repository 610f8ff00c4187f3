"""Files that are made block by block. A process that is killed loses one block, and the next one continues.

While FILE is made, its lines are in `.unfinished-FILE/lines`, beside a record of the inputs that it is made from. At
the end the lines take the name FILE. So FILE is whole or it is not there. It has the same bytes whether its maker was
interrupted or not.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from rankrt.errors import InputError
from rankrt.files.folders import UNFINISHED, lock_of

# Called with the number of blocks that are there already and a folder for what would take long to compute again.
# It yields the lines of each further block, without line ends.
MakeBlocks: TypeAlias = Callable[[int, Path], Iterator[Sequence[str]]]


def write_blocks(out: Path, *, made_from: Mapping[str, Any], block_size: int, make: MakeBlocks) -> None:
    """Write a file of blocks of `block_size` lines, the last one perhaps shorter; continue where a process stopped.

    made_from   the inputs and options that the lines depend on, as JSON values

    Raises InputError if the file exists, if another process makes it, or if it was begun from other inputs.
    """
    if out.exists():
        raise InputError(f"{out} exists. Choose another name, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = unfinished(out)
    try:
        with FileLock(lock_of(out), timeout=0):
            check_inputs(folder, out, made_from)
            _continue(folder / "lines", block_size, lambda n_blocks: make(n_blocks, folder))
            (folder / "lines").replace(out)
            shutil.rmtree(folder)
            lock_of(out).unlink()
    except Timeout as error:
        raise InputError(f"{out} is being made by another process. Wait for it, or choose another name") from error


def unfinished(out: Path) -> Path:
    """Return the folder in which something is made that will get this name."""
    return out.parent / f"{UNFINISHED}{out.name}"


def check_inputs(folder: Path, out: Path, made_from: Mapping[str, Any]) -> None:
    """Record the inputs, or compare them with those that were recorded. Raises InputError if they are others."""
    record = folder / "made_from.json"
    now = json.loads(json.dumps(made_from))
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        record.write_text(json.dumps(now, indent=2), encoding="utf-8")
        return
    begun = json.loads(record.read_text(encoding="utf-8"))
    if changed := [key for key in (begun | now) if begun.get(key) != now.get(key)]:
        raise InputError(
            f"{out} was begun with another {' and '.join(changed)}, and is not finished. Run the same command again to"
            f" finish it, or remove {folder} to start from the beginning"
        )


def _continue(path: Path, block_size: int, make: Callable[[int], Iterator[Sequence[str]]]) -> None:
    with open(path, "ab+") as file:
        n_blocks, n_bytes = _whole_blocks(file, block_size)
        file.truncate(n_bytes)
        for lines in make(n_blocks):
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
        os.fsync(file.fileno())


def _whole_blocks(file: Any, block_size: int) -> tuple[int, int]:
    """Return how many whole blocks a file has, and their bytes."""
    file.seek(0)
    n_lines = n_bytes = n_bytes_of_blocks = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        n_lines, n_bytes = n_lines + 1, n_bytes + len(line)
        if n_lines % block_size == 0:
            n_bytes_of_blocks = n_bytes
    return n_lines // block_size, n_bytes_of_blocks
