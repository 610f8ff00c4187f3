"""SHA-256 of a folder's files, remembered with the state that they had, so that a large file is read whole once.

A file whose size, times or inode differ is read again. Damage that changes none of these is not noticed here.
"""

import os
from pathlib import Path

import msgspec

from rankrt.artifact.manifest import sha256_of
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache, Key
from rankrt.files.seals import SMALL_BYTES

_FILE = "hashes.json"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What changes when a file is written. The time of the last change of the inode cannot be set as mtime can."""

    n_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "State":
        """Ask the file system."""
        found = os.stat(path)
        return cls(n_bytes=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns, inode=found.st_ino)


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    state: State
    sha256: str


# What this process has read: a server's worker starts with less, but a doctor opens every variant of an artifact.
_of_this_process: dict[Path, _Known] = {}


class FileHashes:
    """The hashes of files in one folder. Without a cache only this process remembers them. Threads may share one."""

    def __init__(self, folder: Path, cache: HostCache | None) -> None:
        self._cache = cache
        self._folder = Path(os.path.realpath(folder))
        self._known: dict[str, _Known] = {}
        self._has_news = False
        if cache is not None:
            self._known = _read(cache, self._key)

    def known(self, name: str) -> str | None:
        """Return the hash of a large file that is in the state in which it was read; None for all others."""
        path = self._folder / name
        state = State.of(path)
        if state.n_bytes <= SMALL_BYTES:
            return None
        for known in (_of_this_process.get(path), self._known.get(name)):
            if known is not None and known.state == state:
                return known.sha256
        return None

    def sha256(self, name: str) -> str:
        """Return the hash of a file, read now unless it is known."""
        return self.known(name) or self.read(name)

    def read(self, name: str) -> str:
        """Return the hash of a file that is read now."""
        path = self._folder / name
        before = State.of(path)
        found = _Known(state=before, sha256=sha256_of(path))
        if before.n_bytes > SMALL_BYTES and State.of(path) == before:
            _of_this_process[path] = self._known[name] = found
            self._has_news = True
        return found.sha256

    def save(self) -> None:
        """Remember on this host what was read. Where the cache cannot be written, files are read again another time."""
        if self._cache is None or not self._has_news:
            return
        content = msgspec.json.encode(self._known)
        try:
            self._cache.replace(self._key, lambda folder: (folder / _FILE).write_bytes(content))
            self._has_news = False
        except CacheError:
            self._cache = None

    @property
    def _key(self) -> Key:
        return Key(kind="hashes", name=self._folder.name, variant="files", depends_on={"folder": str(self._folder)})


def _read(cache: HostCache, key: Key) -> dict[str, _Known]:
    try:
        if (found := cache.find(key)) is None:
            return {}
        return msgspec.json.decode((found.folder / _FILE).read_bytes(), type=dict[str, _Known])
    except (CacheError, OSError, msgspec.MsgspecError):  # to be read again costs time only
        return {}
