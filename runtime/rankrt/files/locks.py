"""Locks on files that are open: many processes may hold one, and one that is alone may remove the file.

Other systems than Windows lock with flock(2). Windows refuses to rename or remove what any process has open, so there
an open file is held by being open. A folder that is being made has a lock file of its own. Knows no cache.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def lock_file(path: Path, timeout: float = -1) -> AbstractContextManager[object]:
    """Return a lock to enter, which one process holds at a time.

    Entering waits for so many seconds, without limit if they are negative. It raises TimeoutError, OSError, or
    NotImplementedError on a file system without locks.
    """
    from filelock import FileLock  # 8 ms, and a start from the cache locks nothing

    return FileLock(path, timeout=timeout)


if sys.platform == "win32":

    def hold(descriptor: int) -> None:
        """Hold a file until its descriptor is closed."""

    @contextmanager
    def alone_with(path: Path) -> Iterator[bool]:
        """Yield whether no process holds a file. Raises OSError if it cannot be opened."""
        with path.open("rb"):
            pass
        try:
            path.rename(path)
        except OSError:
            yield False
        else:
            yield True

else:
    import fcntl

    def hold(descriptor: int) -> None:
        """Hold a file until its descriptor is closed. Raises OSError on a file system without locks."""
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    @contextmanager
    def alone_with(path: Path) -> Iterator[bool]:
        """Yield whether no process holds a file; meanwhile none can. Raises OSError if it cannot be opened."""
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
