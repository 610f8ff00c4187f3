"""The two parts of a data set, one to train on and one to evaluate with, and what stands in both.

A data set is split by its queries, never by its lines: all lines of a query are on the same side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rankrt.cli.inputs import Place
from rankrt_finetune.data.examples import Example
from rankrt_finetune.data.queries import digest, is_held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What stands in both parts, where case and white space do not count.

    n_queries    examples to train on whose query is held out, too; `first` is the first of them
    n_positives  those of which a positive passage is also one of a held-out query
    """

    n_queries: int
    n_positives: int
    first: Place | None


def part(
    examples: Iterable[Example], which: Literal["train", "held_out"], share: float, seed: int
) -> Iterator[Example]:
    """Yield the examples of one part, where this share of the queries is held out."""
    return (example for example in examples if is_held_out(example.query, share, seed) == (which == "held_out"))


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> Overlap:
    """Count what stands in both parts. Memory is needed for 64 bits of each held-out query and positive passage."""
    queries, positives = set[int](), set[int]()
    for example in held_out:
        queries.add(digest(example.query))
        positives.update(map(digest, example.pos))
    n_queries = n_positives = 0
    first: Place | None = None
    for example in train:
        if digest(example.query) in queries:
            n_queries, first = n_queries + 1, first or example.place
        n_positives += any(digest(passage) in positives for passage in example.pos)
    return Overlap(n_queries=n_queries, n_positives=n_positives, first=first)
