"""The weights of a checkpoint, read tensor by tensor: safetensors, whole or in shards, and pytorch_model.bin.

Nothing is held: a tensor, or a block of its rows, is read when it is asked for and comes as float32.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 - makes numpy know bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from rankrt.arrays import Float32Array
from rankrt_export.errors import CheckpointError

# Large tensors are read in blocks of about this size: the word table of XLM-R alone has 1 GB.
_BLOCK_BYTES = 1 << 25


class Weights(Protocol):
    """Named tensors on disk."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in the order in which they are hashed."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raises CheckpointError if there is none of that name."""
        ...

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        ...

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        ...


def open_weights(folder: Path) -> Weights:
    """Find the weights of a checkpoint. Raises CheckpointError if there are none or a file is damaged."""
    if (index := folder / "model.safetensors.index.json").exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return SafetensorsWeights([folder / shard for shard in shards])
    if (single := folder / "model.safetensors").exists():
        return SafetensorsWeights([single])
    if (pickled := folder / "pytorch_model.bin").exists():
        return TorchWeights(pickled)
    raise CheckpointError(
        f"{folder} has no weights: expected model.safetensors, model.safetensors.index.json or pytorch_model.bin"
    )


class SafetensorsWeights:
    """Tensors in one or several safetensors files."""

    def __init__(self, files: list[Path]) -> None:
        self.files = tuple(files)
        self._file_of: dict[str, Path] = {}
        for file in files:
            with _open_safetensors(file) as tensors:
                self._file_of |= dict.fromkeys(tensors.keys(), file)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        with _open_safetensors(self._file(name)) as tensors:
            return tuple(tensors.get_slice(name).get_shape())

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor.

        The file is opened anew each time: it is mapped, and closing it is what takes the pages out of our memory.
        """
        with _open_safetensors(self._file(name)) as tensors:
            found: Float32Array = tensors.get_slice(name)[rows].astype(np.float32, copy=False)
        return found

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        for rows in _row_blocks(self.shape(name)):
            yield self.part(name, rows)

    def _file(self, name: str) -> Path:
        try:
            return self._file_of[name]
        except KeyError:
            raise _no_tensor(name, self.files) from None


class TorchWeights:
    """Tensors in a file that torch.save wrote; read with weights_only, so no code in it is run."""

    def __init__(self, file: Path) -> None:
        import torch

        self.files = (file,)
        try:
            self._tensors: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{file} cannot be read as PyTorch weights: {error}") from error

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._tensor(name).shape)

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        for rows in _row_blocks(self.shape(name)):
            yield self.part(name, rows)

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        found: Float32Array = self._tensor(name)[rows].float().numpy()
        return found

    def _tensor(self, name: str) -> Any:
        try:
            return self._tensors[name]
        except KeyError:
            raise _no_tensor(name, self.files) from None


def read(weights: Weights, name: str) -> Float32Array:
    """Return a tensor whole."""
    blocks = list(weights.blocks(name))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


@contextmanager
def hashed_in_background(weights: Weights) -> Iterator[Future[str]]:
    """Yield the future SHA-256 of all weight files, one after the other, while something else is done with them."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_sha256_of_all, weights.files)


def _sha256_of_all(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    n_rows = shape[0] if shape else 1
    step = max(1, _BLOCK_BYTES * n_rows // (4 * max(1, int(np.prod(shape)))))
    yield from (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "numpy") as tensors:
            yield tensors
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: the index names it; download the checkpoint again") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut or damaged ({error}); download the checkpoint again") from error


def _no_tensor(name: str, files: tuple[Path, ...]) -> CheckpointError:
    return CheckpointError(f"{', '.join(str(file) for file in files)} has no tensor {name}")
