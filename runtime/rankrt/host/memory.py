"""The memory that a process keeps between runs, and how it is given back. Linux; elsewhere nothing happens here.

Two things stay after a run that are not needed. The C library keeps the activations' memory, which makes the next run
fast. And of the word table the kernel maps 15 pages beside each that is read, as they are in the page cache anyway.
That was 170 MB of v2-m3's table of 256 MB after 1,000 pairs, for 24 MB of rows. Given back, they are mapped again when
they are read.
"""

import ctypes
import mmap
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

# glibc keeps what is freed up to twice the largest block that was ever mapped for itself and freed (mallopt(3),
# M_MMAP_THRESHOLD; 32 MB at most). So much may stay with every thread that runs, and cannot be given back. With 8 MB
# here, rows of 512 tokens of v2-m3 in int8 took 1.12 times as long: each run faulted 60,000 pages in again. The price
# after 1,000 pairs on two cores is 57 MB more, where 81 stayed.
_LARGEST_KEPT_BYTES = 31 << 20
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$")
# mmap.MADV_DONTNEED, where there is one, by its number on Linux.
_DONTNEED = getattr(mmap, "MADV_DONTNEED", 4)


# How often a session was about to be opened or to go, and how many are at it now.
_lock, _n_changes, _n_changing = threading.RLock(), 0, 0


def _begin_in_child() -> None:
    global _lock, _n_changing
    _lock, _n_changing = threading.RLock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


class Mapping(NamedTuple):
    """A range of addresses, the file that is mapped there, empty for none, and two of the kernel's figures.

    pss_kb        the resident pages; of those that processes share, this one's share
    anonymous_kb  the pages that this process alone has: those that it wrote, where there is a file
    """

    start: int
    n_bytes: int
    file: str
    pss_kb: int
    anonymous_kb: int


def keep_freed_memory() -> None:
    """Let the C library keep the blocks that runs free, instead of asking the system again in every run.

    Activations come from the C library, not from ONNX Runtime's arena. The arena gives nothing back: it held 100 of 155
    private MB of int8 v2-m3. The tiny model's 32 passages take 0.96 of the arena's time with this, 1.07 without.
    """
    np.empty(_LARGEST_KEPT_BYTES, np.uint8)  # never touched; freed on the spot


def release_free_memory() -> None:
    """Give the C library's free pages back to the system, where it can (glibc)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def unmap_largest(folder: Path) -> None:
    """Unmap the resident pages of the largest tensor that is mapped from a folder, in each mapping of it.

    In every reranker that is the word table, since a vocabulary is larger than four times the width.
    """
    _unmap(folder, lambda mapping, largest: mapping.n_bytes == largest)


def unmap_all(folder: Path) -> None:
    """Unmap the resident pages of all that is mapped from a folder, for a library that packs copies of weights."""
    _unmap(folder, lambda mapping, largest: True)


def _unmap(folder: Path, is_chosen: Callable[["Mapping", int], bool]) -> None:
    """Unmap the resident pages of chosen mappings from a folder. A choice sees a mapping and the largest one's size.

    A mapping with pages of its own stays as it is, because what was written would be lost. ONNX Runtime maps its
    weights so that it might write. Nothing happens while a session opens or closes. A new mapping at its addresses
    would lose its content.
    """
    with _lock:
        n_changes = _n_changes
        places = _folders(folder)
        found = [mapping for mapping in mappings() if mapping.file and Path(mapping.file).parent in places]
        if not found:  # nothing is mapped, or this system does not tell
            return
        largest = max(mapping.n_bytes for mapping in found)
        madvise = ctypes.CDLL(None).madvise
        for mapping in found:
            if is_chosen(mapping, largest) and mapping.anonymous_kb == 0:
                start, n_bytes = ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.n_bytes)
                if not _n_changing and _n_changes == n_changes:  # the collector may let a session go in this thread
                    madvise(start, n_bytes, _DONTNEED)


def _folders(folder: Path) -> set[Path]:
    """Return where the files of a folder really are. The hub's cache has links, which the kernel's account follows."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {folder.resolve(), *(file.resolve().parent for file in files)}


@contextmanager
def changing_mappings() -> Iterator[None]:
    """Let no pages go while the block opens a session, or lets one go."""
    global _n_changes, _n_changing
    with _lock:
        _n_changes, _n_changing = _n_changes + 1, _n_changing + 1
    try:
        yield
    finally:
        with _lock:
            _n_changing -= 1


def mappings(smaps: Path = Path("/proc/self/smaps")) -> list[Mapping]:
    """Return what this process has mapped (proc_pid_smaps(5)); nothing where the kernel does not tell."""
    lines = smaps.read_text().splitlines() if smaps.exists() else []
    starts = [i for i, line in enumerate(lines) if _RANGE.match(line)]
    return [_mapping(lines[i:stop]) for i, stop in pairwise([*starts, len(lines)])]


def _mapping(lines: Sequence[str]) -> Mapping:
    found = _RANGE.match(lines[0])
    assert found is not None, "the caller looked"
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines[1:]) if "kB" in rest}
    start, stop = int(found[1], 16), int(found[2], 16)
    file = found[3] if found[3].startswith("/") else ""
    return Mapping(start, stop - start, file, kilobytes.get("Pss", 0), kilobytes.get("Anonymous", 0))
