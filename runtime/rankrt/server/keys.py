"""The keys of clients: compared in constant time, never logged, read again on request."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from rankrt.errors import InputError

VARIABLE = "RANKRT_API_KEY"


class ApiKeys:
    """The keys that may send requests. Without any, all clients may."""

    def __init__(self, keys: Iterable[str] = (), *, path: Path | None = None) -> None:
        self._digests = tuple(map(_digest, keys))
        self._path = path

    @classmethod
    def read(cls, path: Path | None) -> "ApiKeys":
        """Read keys from a file, one a line, or else from the environment (RANKRT_API_KEY). Raises InputError."""
        return cls(_keys_in(path) if path is not None else _keys_of_environment(), path=path)

    def read_again(self) -> None:
        """Take the keys that the file holds now. Raises InputError and keeps the old ones if it holds none.

        Keys of the environment stay: nothing changes a process's environment from outside.
        """
        if self._path is not None:
            self._digests = tuple(map(_digest, _keys_in(self._path)))

    def __len__(self) -> int:
        return len(self._digests)

    def allow(self, authorization: str | None) -> bool:
        """Tell whether an Authorization header names one of the keys: `Bearer KEY`."""
        digests = self._digests
        if not digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Comparing all of them keeps the time from telling which key was nearly right.
        n_equal = sum(hmac.compare_digest(given, known) for known in digests)
        return n_equal > 0 and scheme.lower() == "bearer"


def _keys_of_environment() -> list[str]:
    """Return the key of the environment, if it is set. An empty one is a secret that was not filled in."""
    if (value := os.environ.get(VARIABLE)) is None:
        return []
    if not (key := value.strip()):
        raise InputError(f"{VARIABLE} is set but empty; give it a key, or unset it to serve all clients")
    return [key]


def _keys_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path} cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise InputError(f"--api-key-file {path} holds no key; write one a line, or remove the option to serve all")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
