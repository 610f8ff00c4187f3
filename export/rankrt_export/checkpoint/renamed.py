"""Weights under the names of another implementation of the same model, which may store several layers as one tensor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.weights import Weights, row_blocks
from rankrt_export.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How stored names become a model's own; a name that is the model's own already stays as it is.

    replaced  parts of names and what takes their place, in this order
    joined    parts of the names of joined layers, and the layers whose rows the tensor holds, as many rows of each
    """

    replaced: Mapping[str, str]
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is: in which stored one, and which of so many equal parts of its rows it is."""

    stored: str
    part: int = 0
    n_parts: int = 1


class RenamedWeights:
    """A checkpoint's tensors under a model's own names."""

    def __init__(self, stored: Weights, naming: Naming) -> None:
        self._stored = stored
        self._places = {name: place for key in stored.names for name, place in _places(key, naming)}
        self.files = stored.files
        self.names = frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        if (place := self._places.get(name)) is None:
            return self._stored.shape(name)  # which says that there is none
        n_rows, *others = self._stored.shape(place.stored)
        if n_rows % place.n_parts:
            raise CheckpointError(
                f"{self.files[0].parent} has {n_rows} rows in {place.stored}, which are not {place.n_parts} layers of"
                " one size"
            )
        return (n_rows // place.n_parts, *others)

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        n_rows, place = self.shape(name)[0], self._places[name]
        start, stop, _ = rows.indices(n_rows)
        first = place.part * n_rows
        return self._stored.part(place.stored, slice(first + start, first + stop))

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        for rows in row_blocks(self.shape(name)):
            yield self.part(name, rows)


def _places(stored: str, naming: Naming) -> Iterator[tuple[str, _Place]]:
    """Yield the names of what a stored tensor holds, and where in it."""
    name = stored
    for old, new in naming.replaced.items():
        name = name.replace(old, new)
    for joined, layers in naming.joined.items():
        if joined in name:
            for i, layer in enumerate(layers):
                yield name.replace(joined, layer), _Place(stored, i, len(layers))
            return
    yield name, _Place(stored)
