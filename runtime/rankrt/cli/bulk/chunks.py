"""Pairs of a file, chunk by chunk, as rows of JSON Lines, CSV and TSV. Knows no model."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.cli import inputs
from rankrt.cli.inputs import Format, PlacedPair
from rankrt.errors import InputError
from rankrt.text.pairs import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The keys or columns that hold the two texts of a pair."""

    query: str = "query"
    passage: str = "passage"


class Chunk(Protocol):
    """Some pairs of a file that follow each other, with all that stands beside them."""

    def __len__(self) -> int: ...

    @property
    def pairs(self) -> Sequence[Pair]:
        """The texts."""
        ...

    def place(self, number: int) -> str:
        """Return where the pair of that number in this chunk stands in its file, for messages."""
        ...

    def cut(self, start: int, stop: int) -> Self:
        """Return the pairs from one number up to another."""
        ...

    def joined(self, others: Sequence[Self]) -> Self:
        """Return these pairs with the next ones of the file."""
        ...

    def take(self, numbers: Int64Array) -> Self:
        """Return the pairs of these numbers, in this order."""
        ...

    def rows(self, *, has_text: bool) -> list[Mapping[str, Any]]:
        """Return for each pair what stands beside its texts, or with `has_text` the texts as well."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A chunk of pairs from lines of text."""

    placed: Sequence[PlacedPair]
    names: Names

    def __len__(self) -> int:
        return len(self.placed)

    @property
    def pairs(self) -> Sequence[Pair]:
        """The texts."""
        return [placed.pair for placed in self.placed]

    def place(self, number: int) -> str:
        """Return the file and the line of a pair."""
        return str(self.placed[number].place)

    def cut(self, start: int, stop: int) -> "Rows":
        """Return the pairs from one number up to another."""
        return Rows(placed=self.placed[start:stop], names=self.names)

    def joined(self, others: Sequence["Rows"]) -> "Rows":
        """Return these pairs with the next ones of the file."""
        return Rows(placed=[*self.placed, *(placed for other in others for placed in other.placed)], names=self.names)

    def take(self, numbers: Int64Array) -> "Rows":
        """Return the pairs of these numbers, in this order."""
        return Rows(placed=[self.placed[number] for number in numbers], names=self.names)

    def rows(self, *, has_text: bool) -> list[Mapping[str, Any]]:
        """Return the other fields of each pair, with `has_text` after its texts."""
        if not has_text:
            return [placed.fields for placed in self.placed]
        names = (self.names.query, self.names.passage)
        return [{**dict(zip(names, placed.pair, strict=True)), **placed.fields} for placed in self.placed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A chunk with the logits of its pairs, and whether their passages were truncated."""

    chunk: Chunk
    logits: Float32Array
    truncated: BoolArray

    def __len__(self) -> int:
        return len(self.chunk)

    def cut(self, start: int, stop: int) -> "Scored":
        """Return the pairs from one number up to another."""
        return Scored(
            chunk=self.chunk.cut(start, stop), logits=self.logits[start:stop], truncated=self.truncated[start:stop]
        )

    @classmethod
    def joined(cls, parts: Sequence["Scored"]) -> "Scored":
        """Return pairs that follow each other as one chunk."""
        first, *others = parts
        return cls(
            chunk=first.chunk.joined([other.chunk for other in others]),
            logits=np.concatenate([part.logits for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
        )


def read_rows(file: io.BufferedIOBase, name: str, format: Format | None, names: Names, size: int) -> Iterator[Rows]:
    """Yield the pairs of a stream in chunks of `size`.

    Raises InputError at a line that cannot be read, after the pairs before it.
    """
    pairs = inputs.read_pairs(file, name, format, query=names.query, passage=names.passage)
    for placed in until_error(pairs, size):
        yield Rows(placed=placed, names=names)


_Item = TypeVar("_Item")


def until_error(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield items in lists of `size`. Of a list that an InputError cuts short the items before it come first."""
    remaining, unreadable = iter(items), None
    while unreadable is None:
        found: list[_Item] = []
        try:
            for item in islice(remaining, size):
                found.append(item)
        except InputError as error:
            unreadable = error
        if not found:
            break
        yield found
    if unreadable is not None:
        raise unreadable
