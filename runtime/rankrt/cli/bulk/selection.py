"""Which of the scored pairs are written, and in which order: all, those that reach a threshold, the best of a query."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankrt.arrays import Int64Array
from rankrt.cli.bulk.chunks import Chunk, Scored
from rankrt.errors import InputError
from rankrt.scale import Scale, reaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Pairs to write: our columns by their names, and the chunk with the input's."""

    ours: dict[str, Any]
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pairs are written, and on which scale their scores are.

    threshold   pairs that score below it on the scale are left out
    top_n       the most pairs of a query, best first; the pairs of a query have to follow each other
    has_text    whether the texts are written, too
    """

    scale: Scale
    threshold: float | None = None
    top_n: int | None = None
    has_text: bool = False

    def in_order(self, *files: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield chunks whose queries can be told apart: for the best of each, a query has all its pairs in one place.

        Raises InputError for a query that comes again. Remembers a hash a query, some 60 MB for a million.
        """
        ended = set[int]()
        for file in files:
            last = None
            for chunk in file:
                for number, (query, _) in enumerate(chunk.pairs if self.top_n is not None else ()):
                    if query == last:
                        continue
                    if hash(query) in ended:
                        raise InputError(
                            f"{chunk.place(number)}: this query has pairs further up, after which others come, or in"
                            " another file. For the best of each query (top_n) the pairs of a query have to follow"
                            " each other; sort the pairs by query"
                        )
                    ended.add(hash(last))
                    last = query
                yield chunk
            ended.add(hash(last))

    def told(self, scored: Iterable[Scored]) -> Iterator[Told]:
        """Yield the pairs to write, in the order of the file."""
        first = 0
        for part in scored if self.top_n is None else _whole_queries(scored):
            scores = self.scale.scores(part.logits)
            order, ranks = (np.arange(len(part)), None) if self.top_n is None else _best(part, self.top_n)
            is_kept = reaches(scores[order], self.threshold)
            order = order[is_kept]
            ours: dict[str, Any] = {}
            if self.top_n is not None or self.threshold is not None:
                ours["index"] = first + order
            if ranks is not None:
                ours["rank"] = ranks[is_kept]
            ours |= {"score": scores[order], "truncated": part.truncated[order]}
            yield Told(ours=ours, chunk=part.chunk.take(order))
            first += len(part)


def _best(part: Scored, n: int) -> tuple[Int64Array, Int64Array]:
    """Return the numbers of the best pairs of each query, and their ranks; equal scores stay in the file's order."""
    orders, ranks = [], []
    for start, stop in _runs([query for query, _ in part.chunk.pairs]):
        order = start + np.argsort(-part.logits[start:stop], kind="stable")[:n]
        orders.append(order)
        ranks.append(np.arange(1, len(order) + 1))
    return np.concatenate(orders), np.concatenate(ranks)


def _whole_queries(scored: Iterable[Scored]) -> Iterator[Scored]:
    """Yield chunks that end where a query ends. Each pair is joined once, however many a query has."""
    waiting: list[Scored] = []  # all of one query
    last_query = None
    for part in scored:
        queries = [query for query, _ in part.chunk.pairs]
        *_, (start, stop) = _runs(queries)
        if start == 0 and queries[0] == last_query:
            waiting.append(part)
            continue
        if ended := [*waiting, *([part.cut(0, start)] if start else [])]:
            yield Scored.joined(ended)
        waiting, last_query = [part.cut(start, stop)], queries[start]
    if waiting:
        yield Scored.joined(waiting)


def _runs(queries: list[str]) -> list[tuple[int, int]]:
    """Return where each run of equal queries starts and stops."""
    starts = [i for i, query in enumerate(queries) if i == 0 or query != queries[i - 1]]
    return list(zip(starts, [*starts[1:], len(queries)], strict=True))
