"""The weights of a checkpoint, read tensor by tensor: safetensors and pytorch_model.bin, whole or in shards.

Nothing is held: a tensor, or a block of its rows, is read when it is asked for and comes as float32.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 - makes numpy know bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.fields import read_object
from rankrt_export.errors import CheckpointError

# Large tensors are read in blocks of about this size: the word table of XLM-R alone has 1 GB.
_BLOCK_BYTES = 1 << 25
# As safetensors calls them.
_FLOATS = ("F64", "F32", "F16", "BF16")


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
        shards = _shards(index)
        return _with_all(SafetensorsWeights(sorted(set(shards.values()))), shards, index)
    if (single := folder / "model.safetensors").exists():
        return SafetensorsWeights([single])
    if (index := folder / "pytorch_model.bin.index.json").exists():
        shards = _shards(index)
        return _with_all(TorchWeights(sorted(set(shards.values()))), shards, index)
    if (pickled := folder / "pytorch_model.bin").exists():
        return TorchWeights([pickled])
    raise CheckpointError(
        f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or the index of one of them"
        " (model.safetensors.index.json, pytorch_model.bin.index.json)"
    )


def _shards(index: Path) -> dict[str, Path]:
    """Return the file of each tensor that an index names."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map, which names the file of each tensor")
    for file in places.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r} in its weight_map, which is not a file beside it")
    return {name: index.parent / file for name, file in places.items()}


def _with_all(weights: "SafetensorsWeights | TorchWeights", shards: Mapping[str, Path], index: Path) -> Weights:
    """Return the weights if they have all tensors of their index."""
    if missing := sorted(shards.keys() - weights.names):
        raise CheckpointError(
            f"{shards[missing[0]]} has no tensor {missing[0]}, which {index.name} places there ({len(missing)} are"
            " missing): download the checkpoint again"
        )
    return weights


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

        The file is opened each time. It is mapped, and only closing it takes the pages out of our memory.
        """
        with _open_safetensors(file := self._file(name)) as tensors:
            part = tensors.get_slice(name)
            if (dtype := part.get_dtype()) not in _FLOATS:
                raise _not_floats(file, name, dtype)
            found: Float32Array = part[rows].astype(np.float32, copy=False)
        return _finite(found, file, name, rows)

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        for rows in row_blocks(self.shape(name)):
            yield self.part(name, rows)

    def _file(self, name: str) -> Path:
        try:
            return self._file_of[name]
        except KeyError:
            raise _no_tensor(name, self.files) from None


class TorchWeights:
    """Tensors in files that torch.save wrote; read with weights_only, so no code in them is run."""

    def __init__(self, files: list[Path]) -> None:
        import torch

        self.files = tuple(files)
        self._tensors: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            tensors = _load_pickled(file)
            if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
                raise CheckpointError(f"{file} does not hold tensors by name: save the model again with safetensors")
            self._tensors |= tensors
            self._file_of |= dict.fromkeys(tensors, file)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._tensor(name).shape)

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        for rows in row_blocks(self.shape(name)):
            yield self.part(name, rows)

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        tensor = self._tensor(name)
        if not tensor.is_floating_point():
            raise _not_floats(self._file_of[name], name, tensor.dtype)
        # Some files hold parameters, which ask for a gradient.
        return _finite(tensor[rows].detach().float().numpy(), self._file_of[name], name, rows)

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


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of a tensor of that shape in blocks that are read at once."""
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


def _load_pickled(file: Path) -> Any:
    import torch

    if not file.exists():
        raise CheckpointError(f"{file} is missing: the index names it; download the checkpoint again")
    try:
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read as PyTorch weights: {error}") from error


def _finite(values: Float32Array, file: Path, name: str, rows: slice) -> Float32Array:
    """Return values if all of them are numbers. A sum is quick to compute, and finite only if they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()) or (n := int((~np.isfinite(values)).sum())) == 0:
            return values
    raise CheckpointError(
        f"{file} is damaged: {name} has NaN or infinity ({n} of {values.size} values from row {rows.start or 0} on), so"
        " no precision can score. Save it again from a state of training that scores"
    )


def _not_floats(file: Path, name: str, dtype: Any) -> CheckpointError:
    return CheckpointError(
        f"{file} stores {name} as {dtype}, not as floating-point numbers of 16 bits or more: it is quantized already."
        " Export the checkpoint that it was made from"
    )


def _no_tensor(name: str, files: tuple[Path, ...]) -> CheckpointError:
    return CheckpointError(f"{', '.join(str(file) for file in files)} has no tensor {name}")
