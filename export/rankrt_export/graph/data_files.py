"""The data files of an artifact in the making: tensors outside the graphs, shared by the variants that have them alike.

A tensor is written once, under a key; asked for again, the same bytes are referred to. Hashes are taken on the way.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import onnx_ir as ir

from rankrt.artifact.manifest import File

# ONNX Runtime maps large tensors into memory, and a mapping begins at a page.
_PAGE_BYTES, _CACHE_LINE_BYTES, _LARGE_BYTES = 4096, 64, 1 << 20


class DataFiles:
    """Files of one folder to which tensors are appended, until the context ends."""

    def __init__(self, folder: Path, progress: Callable[[int], None] = lambda n_bytes: None) -> None:
        self._folder = folder
        self._progress = progress
        self._writers: dict[str, _Writer] = {}
        self._open_files = ExitStack()
        self._tensors: dict[tuple[str, str], ir.ExternalTensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._open_files.close()

    @property
    def files(self) -> dict[str, File]:
        """The sizes and hashes of all files, as far as they are written."""
        return {name: writer.file for name, writer in sorted(self._writers.items())}

    def tensor(
        self, file: str, key: str, dtype: np.dtype[Any], shape: Iterable[int], blocks: Callable[[], Iterable[Any]]
    ) -> ir.ExternalTensor:
        """Return a reference to a tensor of a file; `blocks` yields its content, in order, if it is not there yet."""
        if (file, key) not in self._tensors:
            writer, n_bytes = self._writer(file), int(np.prod(list(shape))) * dtype.itemsize
            offset = writer.align(_PAGE_BYTES if n_bytes >= _LARGE_BYTES else _CACHE_LINE_BYTES)
            for block in blocks():
                self._progress(writer.append(np.ascontiguousarray(block, dtype)))
            self._tensors[file, key] = ir.ExternalTensor(
                file, offset, n_bytes, ir.DataType.from_numpy(dtype), shape=ir.Shape(shape), name=key
            )
        return self._tensors[file, key]

    def _writer(self, file: str) -> "_Writer":
        if file not in self._writers:
            opened = self._open_files.enter_context((self._folder / file).open("wb"))
            self._writers[file] = _Writer(opened)
        return self._writers[file]


class _Writer:
    """One file that grows and is hashed as it does."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._n_bytes = 0

    def align(self, n_bytes: int) -> int:
        self._write(b"\0" * (-self._n_bytes % n_bytes))
        return self._n_bytes

    def append(self, array: np.ndarray[Any, Any]) -> int:
        # As bytes, since numpy gives no view of 8-bit floats.
        self._write(array.reshape(-1).view(np.uint8).data if array.size else b"")
        return array.nbytes

    @property
    def file(self) -> File:
        return File(n_bytes=self._n_bytes, sha256=self._digest.hexdigest())

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._n_bytes += len(content)
