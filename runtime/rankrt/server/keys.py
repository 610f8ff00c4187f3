"""The keys that clients prove themselves with; compared in constant time, never logged."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from rankrt.errors import InputError

VARIABLE = "RANKRT_API_KEY"


class ApiKeys:
    """Who may ask. Without keys, everybody may."""

    def __init__(self, keys: Iterable[str] = (), path: Path | None = None) -> None:
        """`path` is the file that holds them."""
        self._digests = [_digest(key) for key in keys]
        self._path = path

    @classmethod
    def read(cls, path: Path | None) -> "ApiKeys":
        """Read keys from a file, one a line, or else from the environment (RANKRT_API_KEY). Raises InputError."""
        if path is None:
            key = os.environ.get(VARIABLE, "").strip()
            return cls([key] if key else [])
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as a file of keys: {error}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise InputError(f"{path} holds no key: one a line is expected, or leave the option out to serve everybody")
        return cls(keys, path)

    def read_again(self) -> None:
        """Take the keys that their file holds now, if there is one. Raises InputError, and keeps those of before."""
        if self._path is not None:
            self._digests = ApiKeys.read(self._path)._digests

    def __len__(self) -> int:
        return len(self._digests)

    def allow(self, authorization: str | None) -> bool:
        """Tell whether an Authorization header names one of the keys: `Bearer KEY`."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # All are compared, so that the time does not tell which one was nearly right.
        n_equal = sum(hmac.compare_digest(given, known) for known in self._digests)
        return n_equal > 0 and scheme.lower() == "bearer"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
