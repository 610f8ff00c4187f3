"""The texts of documents by their ids, in a temporary file: memory holds the ids and where each text ends."""

import hashlib
import tempfile
from array import array
from collections.abc import Iterator


class Documents:
    """Texts that are added once and read in any order. It is a context manager; the file vanishes with it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="rankrt-documents-")  # noqa: SIM115 - closed by close
        self._numbers: dict[str, int] = {}
        self._ends = array("Q", [0])
        self._digest = hashlib.sha256()

    def add(self, name: str, text: str) -> None:
        """Keep the text of an id that is new."""
        assert name not in self._numbers
        content = text.encode()
        self._file.seek(self._ends[-1])
        self._file.write(content)
        self._numbers[name] = len(self._numbers)
        self._ends.append(self._ends[-1] + len(content))
        self._digest.update(f"{name}\0{len(content)}\0".encode() + content)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def text(self, name: str) -> str:
        """Return the text of an id that is there."""
        number = self._numbers[name]
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number]).decode()

    @property
    def digest(self) -> str:
        """The SHA-256 of all ids and texts, in the order in which they were added."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __enter__(self) -> "Documents":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
