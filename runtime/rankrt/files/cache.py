"""The host's cache: all that rankrt writes for itself, in one place, with one format, one list and one limit.

    CACHE/prepared/NAME-VARIANT-DIGEST/    graphs and vocabularies made ready for this processor
    CACHE/gpu/...                          TensorRT engines and records that `rankrt prepare` made
    CACHE/measured/...                     how fast a variant is on this processor, and how far from PyTorch
    CACHE/exported/...                     artifacts of checkpoints that were loaded
    CACHE/hashes/...                       SHA-256 of files that were read whole, with the state they had then

An entry is a folder with an `entry.json`, which has the entry's inputs and the hashes of its files. Its name has a
digest of the inputs, so another artifact, library, processor or format of the cache has another entry. Knows neither
graphs nor weights nor tokenizers. Processes and users may share the cache. An entry that is not in use can disappear at
any time.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from rankrt.errors import CacheError, InputError
from rankrt.files.folders import UNFINISHED, lock_of, new_folder, size_of
from rankrt.files.locks import alone_with, hold, lock_file
from rankrt.files.rights import home_folder, this_user, unreadable
from rankrt.files.seals import Seal
from rankrt.notices import warn_once

Kind: TypeAlias = Literal["prepared", "gpu", "measured", "exported", "hashes"]
# ready: made for this installation.
# stale: made by or for another version, so never used here.
# unfinished: being made, or left by a process that was killed.
# unreadable: damaged, or of a user who does not share it.
# lock: held by a process while it makes an entry.
State: TypeAlias = Literal["ready", "stale", "unfinished", "unreadable", "lock"]

KINDS: tuple[Kind, ...] = ("prepared", "gpu", "measured", "exported", "hashes")
ENTRY = "entry.json"
_FORMAT = 1
# Records of entries from before there was one format for all.
_OLDER_RECORDS = ("prepared.json", "build.json", "rankrt.json")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FOLDER, _LIMIT = "RANKRT_CACHE", "RANKRT_CACHE_MAX"

_logger = logging.getLogger("rankrt")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of an entry: the names of a model and a variant, and everything that its content depends on.

    In `depends_on`, "engine" is the library with its version. Another word would make every entry a stranger.
    """

    kind: Kind
    name: str
    variant: str
    depends_on: dict[str, str]

    @property
    def folder_name(self) -> str:
        """A name of its own. The model's name comes from a file, so characters that could harm are replaced."""
        digest = hashlib.sha256(msgspec.json.encode((_FORMAT, self))).hexdigest()
        readable = re.sub(r"[^\w.-]+", "_", f"{self.name[:60]}-{self.variant}", flags=re.ASCII).lstrip(".")
        return f"{readable}-{digest[:16]}"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The content of entry.json."""

    format: int
    producer: str
    key: Key
    files: dict[str, Seal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something in the cache. A process opened it last at `used_at`; `remark` says what is wrong."""

    path: Path
    kind: Kind
    state: State
    name: str
    variant: str
    depends_on: Mapping[str, str]
    n_bytes: int
    used_at: float
    is_in_use: bool
    remark: str = ""

    @property
    def is_waste(self) -> bool:
        """Whether this installation will never use it."""
        return not self.is_in_use and self.state != "ready"


class Use:
    """An entry that this process uses. It is not removed meanwhile: a worker may have to start again from it."""

    def __init__(self, folder: Path, descriptor: int | None) -> None:
        self.folder = folder
        self._release = None if descriptor is None else weakref.finalize(self, os.close, descriptor)

    def until_gone(self, owner: object) -> None:
        """Keep the entry until that object is collected."""
        weakref.finalize(owner, self.end)

    def end(self) -> None:
        """Let the entry be removed."""
        if self._release is not None:
            self._release()


class HostCache:
    """The cache below one folder. Methods raise CacheError if the folder cannot be read or written."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take this user's cache. Raises CacheError if it has no place, InputError for a bad limit."""
        self.folder = folder or cache_folder()
        self.limit = cache_limit()

    @property
    def is_writable(self) -> bool:
        """Whether this user may add entries."""
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if os.path.exists(path))
        kinds = [self.folder / kind for kind in KINDS if os.path.exists(self.folder / kind)]
        return all(os.access(path, os.W_OK | os.X_OK) for path in (there, *kinds))

    def path(self, key: Key) -> Path:
        """Return where the entry of a key is, or would be."""
        return self.folder / key.kind / key.folder_name

    def find(self, key: Key) -> Use | None:
        """Return the entry of a key, or None if it is missing or damaged. Warns of a damaged one."""
        folder = self.path(key)
        with _explain_errors(folder):
            return self._find(key)

    def make(self, key: Key, write: Callable[[Path], object]) -> Use:
        """Return the entry of a key. If it is missing or damaged, one process makes it with `write` and others wait."""
        folder = self.path(key)
        with _explain_errors(folder):
            if (found := self._find(key)) is not None:
                return found
            folder.parent.mkdir(parents=True, exist_ok=True)
            with lock_file(lock_of(folder)):
                if (found := self._find(key)) is None:
                    found = self._make(key, write)
        self._keep_to_limit(found.folder)
        return found

    def replace(self, key: Key, write: Callable[[Path], object]) -> None:
        """Write the entry of a key again."""
        folder = self.path(key)
        with _explain_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with lock_file(lock_of(folder)):
                self._make(key, write)

    @contextmanager
    def filling(self, key: Key) -> Iterator[Path]:
        """Yield the folder of a key, to be filled in place by one process at a time; `seal` makes it an entry."""
        folder = self.path(key)
        with _explain_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with lock_file(lock_of(folder)):
                yield folder
        self._keep_to_limit(folder)

    def seal(self, key: Key, names: Sequence[str]) -> None:
        """Make a folder that was filled in place an entry, with the hashes of those files."""
        _seal(self.path(key), key, names)

    def use(self, folder: Path) -> Use:
        """Keep an entry from being removed."""
        return Use(folder, _shared_lock(folder / ENTRY))

    def items(self) -> list[Item]:
        """Return the content of the cache, by kind and name, without files of other programs."""
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise CacheError(f"{self.folder} is not a folder, so it cannot be the cache. Name one with {_FOLDER}")
        found: list[Item] = []
        for kind in KINDS:
            try:
                names = sorted(os.listdir(self.folder / kind))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                remark = unreadable(self.folder / kind, error)
                found.append(_item(self.folder / kind, kind, "unreadable", remark=remark))
                continue
            found += [_look_at(self.folder / kind / name, kind) for name in names]
        return found

    def damaged(self) -> Iterator[tuple[Item, str]]:
        """Read all entries whole; yield those whose files have changed, with the reason."""
        for item in self.items():
            try:
                entry = _read(item.path) if item.state == "ready" else None
                problem = None if entry is None else _problem(item.path, entry, is_full=True)
            except OSError as error:
                problem = unreadable(Path(error.filename or item.path), error)
            if problem is not None:
                yield item, problem

    def prune(self) -> list[Item]:
        """Remove waste, then the least recently used entries beyond the limit; return the removed items."""
        waste = [item for item in self.items() if item.is_waste] + [item for item, _ in self.damaged()]
        removed = [item for item in waste if _remove(item)]
        return removed + self._keep_to_limit()

    def clear(self) -> tuple[list[Item], list[Item]]:
        """Remove everything that no process uses; return the removed items and the rest."""
        # Locks last: otherwise a process that waits for one could make an entry while it is being removed.
        items = sorted(self.items(), key=lambda item: item.state == "lock")
        removed = [item for item in items if not item.is_in_use and _remove(item)]
        for kind in KINDS:
            with suppress(OSError):
                (self.folder / kind).rmdir()
        return removed, [item for item in items if item not in removed and item.state != "lock"]

    def _find(self, key: Key) -> Use | None:
        folder = self.path(key)
        use = self.use(folder)
        if not folder.exists():
            return None
        if (entry := _read(folder)) is None or entry.key != key:
            problem: str | None = f"{ENTRY} is missing or has other bytes than were written"
        else:
            problem = _problem(folder, entry, is_full=False)
        if problem is not None:
            warn_once(f"{folder} is damaged: {problem}")
            return None
        with suppress(OSError):  # of another user, or read-only: then it keeps its first time
            os.utime(folder / ENTRY)
        return use

    def _make(self, key: Key, write: Callable[[Path], object]) -> Use:
        folder = self.path(key)
        for leftover in folder.parent.glob(f"{UNFINISHED}{folder.name}-*"):  # we hold the lock: its maker has ended
            shutil.rmtree(leftover, ignore_errors=True)
        if not _discard(folder):
            raise PermissionError(errno.EACCES, "permission denied", str(folder))
        try:
            with new_folder(folder) as unfinished:
                write(unfinished)
                _seal(unfinished, key, sorted(path.name for path in unfinished.iterdir() if path.is_file()))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or (found := self._find(key)) is None:
                raise
            return found  # another process has made it meanwhile
        return self.use(folder)

    def _keep_to_limit(self, new: Path | None = None) -> list[Item]:
        """Remove the least recently used entries until the cache is within its limit; never the new one."""
        if (limit := self.limit) is None:
            return []
        items, removed = self.items(), []
        n_bytes = sum(item.n_bytes for item in items)
        for item in sorted(items, key=lambda item: (not item.is_waste, item.used_at)):
            if n_bytes <= limit:
                break
            if item.n_bytes and item.path != new and not item.is_in_use and _remove(item):
                removed.append(item)
                n_bytes -= item.n_bytes
                _logger.info("removed %s %s from the cache, to keep to %s", item.name, item.variant, _LIMIT)
        if n_bytes > limit:
            warn_once(
                f"{self.folder} takes {n_bytes / 1e9:.2f} GB, more than {_LIMIT} allows ({limit / 1e9:.2f} GB):"
                " the rest is in use"
            )
        return removed


def cache_folder() -> Path:
    """Return the folder that RANKRT_CACHE names, or rankrt's in the user's cache folder.

    Raises CacheError if there is neither a named folder nor a home.
    """
    if named := os.environ.get(_FOLDER):
        try:
            return Path(named).expanduser()  # a file of settings has no shell to do it
        except RuntimeError as error:
            raise CacheError(f"{_FOLDER}={named} cannot be used: {error} Name an absolute folder") from error
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "rankrt"
    if (home := home_folder()) is None:
        raise CacheError(f"{this_user()} has no home folder to keep a cache in. Name a folder with {_FOLDER}")
    return home / ".cache" / "rankrt"


def cache_limit() -> int | None:
    """Return the bytes that RANKRT_CACHE_MAX allows, or None without a limit. Raises InputError if it is not a size."""
    text = os.environ.get(_LIMIT, "")
    return parse_size(text, _LIMIT) if text.strip() else None


def parse_size(text: str, name: str) -> int:
    """Read a size such as 20GB, 500 MiB or 1.5T; a number alone is bytes. Raises InputError with the option's name."""
    if (found := _SIZE.fullmatch(text)) is None:
        raise InputError(f"{name}={text!r} is not a size; write it as 20GB, 500MB or 10GiB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(prefix.lower()) if prefix else 0))


def _seal(folder: Path, key: Key, names: Sequence[str]) -> None:
    """Write entry.json, last and whole."""
    from importlib.metadata import version  # 12 ms, and a start from the cache writes nothing

    files = {name: Seal.of(folder / name) for name in names}
    entry = Entry(format=_FORMAT, producer=f"rankrt {version('rankrt')}", key=key, files=files)
    unfinished = folder / f".{ENTRY}"
    with unfinished.open("wb") as file:
        file.write(msgspec.json.encode(entry))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / ENTRY)


def _read(folder: Path) -> Entry | None:
    """Return the content of entry.json, or None if it is missing or has another format."""
    try:
        entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return entry if entry.format == _FORMAT else None


def _problem(folder: Path, entry: Entry, *, is_full: bool) -> str | None:
    problems = (seal.problem(folder / name, is_full=is_full) for name, seal in entry.files.items())
    return next(filter(None, problems), None)


def _look_at(path: Path, kind: Kind) -> Item:
    """Describe a file or folder in the cache."""
    try:
        if path.name.startswith(UNFINISHED):
            name = path.name.removeprefix(UNFINISHED).rpartition("-")[0]
            return _item(path, kind, "unfinished", is_in_use=_is_locked(lock_of(path.parent / name)))
        if path.name.startswith(".") and path.name.endswith(".lock"):
            return _item(path, kind, "lock", is_in_use=_is_locked(path))
        if kind == "gpu" and path.name == "timings":
            return _item(path, kind, "ready", remark="TensorRT's timings of kernels, shared by all its engines")
        content = (path / ENTRY).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return _without_entry(path, kind)
    except OSError as error:
        return _item(path, kind, "unreadable", remark=unreadable(path, error))
    try:
        entry = msgspec.json.decode(content, type=Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _item(path, kind, "unreadable", remark="its entry.json is damaged or of another version of rankrt")
    remark = _why_stale(entry)
    return _item(path, kind, "stale" if remark else "ready", key=entry.key, is_in_use=_is_used(path), remark=remark)


def _without_entry(path: Path, kind: Kind) -> Item:
    is_locked = _is_locked(lock_of(path))
    if any((path / name).exists() for name in _OLDER_RECORDS) and not is_locked:
        return _item(path, kind, "stale", remark="of an older version of rankrt")
    return _item(path, kind, "unfinished", is_in_use=is_locked)


def _item(
    path: Path,
    kind: Kind,
    state: State,
    *,
    key: Key | None = None,
    is_in_use: bool = False,
    remark: str = "",
) -> Item:
    used_at = 0.0
    for file in (path / ENTRY, path):
        with suppress(OSError):
            used_at = file.stat().st_mtime
            break
    is_folder = path.is_dir() if state != "unreadable" else os.access(path, os.R_OK | os.X_OK)
    n_bytes = 0 if state == "lock" else size_of(path) if is_folder else 0
    return Item(
        path=path,
        kind=kind,
        state=state,
        name=key.name if key else path.name,
        variant=key.variant if key else "",
        depends_on=key.depends_on if key else {},
        n_bytes=n_bytes,
        used_at=used_at,
        is_in_use=is_in_use,
        remark=remark,
    )


def _why_stale(entry: Entry) -> str:
    from importlib.metadata import PackageNotFoundError, version

    if entry.format != _FORMAT:
        return f"written by {entry.producer}, in format {entry.format} of the cache"
    for library in entry.key.depends_on.get("engine", "").split(", "):
        name, _, made_for = library.rpartition(" ")
        with suppress(PackageNotFoundError, ValueError):
            if made_for != (installed := version(name)):
                return f"made for {library}; {installed} is installed"
    return ""


def _remove(item: Item) -> bool:
    """Remove an item unless a process has taken it meanwhile; tell whether it is gone."""
    path = item.path
    if item.state == "lock" or item.state == "unfinished":
        lock = path if item.state == "lock" else _lock_of_unfinished(path)
        try:
            with lock_file(lock, timeout=0):
                if item.state == "unfinished":
                    shutil.rmtree(path, ignore_errors=True)
                # A process that waits for a lock without a name may make an entry beside another one: see `_made`.
                lock.unlink(missing_ok=True)
        except OSError:
            return False
        return not path.exists()
    try:
        with alone_with(path / ENTRY) as is_alone:
            return is_alone and _discard(path)
    except OSError:  # of another version: nothing here uses it
        return _discard(path)


def _lock_of_unfinished(path: Path) -> Path:
    if not path.name.startswith(UNFINISHED):
        return lock_of(path)
    return lock_of(path.parent / path.name.removeprefix(UNFINISHED).rpartition("-")[0])


def _discard(path: Path) -> bool:
    """Take an entry's name away first, so that no process finds half of it; tell whether it is gone."""
    trash = path.parent / f"{UNFINISHED}{path.name}-{os.urandom(4).hex()}"
    try:
        path.rename(trash)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True


def _shared_lock(path: Path) -> int | None:
    """Return a descriptor that holds a shared lock on a file, or None if the file or the lock is not possible."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # children do not inherit it
    except OSError:
        return None
    try:
        hold(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:  # no locks here, so entries in use are removed too; or the file was just removed
        os.close(descriptor)
        return None
    os.close(descriptor)  # another process has made the entry again meanwhile
    return _shared_lock(path)


def _is_used(folder: Path) -> bool:
    try:
        with alone_with(folder / ENTRY) as is_alone:
            return not is_alone
    except OSError:
        return False


def _is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock file. A file that this user may not open counts as held."""
    if not path.exists():
        return False
    try:
        with lock_file(path, timeout=0):
            return False
    except OSError:
        return True


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a sentence that is the same for all entries."""
    root = folder.parent.parent
    try:
        yield
    except NotImplementedError as error:  # filelock's, for a file system without locks
        raise CacheError(f"the cache {root} cannot be locked ({error}). Name another folder with {_FOLDER}") from error
    except PermissionError as error:
        raise CacheError(
            f"the cache {root} cannot be used as {this_user()}: permission denied. Give that user the right, or name"
            f" another folder with {_FOLDER}"
        ) from error
    except OSError as error:
        remedy = "Make room, or name" if error.errno in _FULL else "Name"
        raise CacheError(
            f"the cache {root} cannot be used: {error.strerror or error}. {remedy} another folder with {_FOLDER}"
        ) from error
