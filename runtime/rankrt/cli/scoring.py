"""The scores of files: pairs block by block, and one ranking after another. Knows no stream and no format."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rankrt.cli.inputs import PlacedPair, Query
from rankrt.cli.outputs import Answer, beside
from rankrt.errors import InputError, ScoreError
from rankrt.reranker import Reranker
from rankrt.scoring import Scored, sigmoid

# A block is scored before its scores are written: enough rows for the planner to fill its runs, few enough that a large
# model on a CPU writes something every few seconds. A GPU encodes the next 512 pairs of a block while it scores.
_BLOCK_PAIRS, _GPU_BLOCK_PAIRS = 256, 1024
_Block = tuple[Scored, Sequence[PlacedPair]]


def ranked(
    reranker: Reranker, queries: Iterable[Query], *, on_progress: Callable[[int], object] | None, **options: Any
) -> Iterator[Answer]:
    """Yield the ranking of each query's documents. The options are those of `Reranker.rank`.

    Raises ScoreError, with the place of the document in its file.
    """
    for query in queries:
        documents = query.documents or ()
        try:
            ranking = reranker.rank(
                query.text, [document.text for document in documents], on_progress=on_progress, **options
            )
        except ScoreError as error:
            raise ScoreError(_placed(error, [document.place for document in documents])) from error
        yield Answer(query=query, ranking=ranking)


def scored(
    reranker: Reranker, pairs: Iterable[PlacedPair], *, normalize: bool, on_progress: Callable[[int], object]
) -> Iterator[list[dict[str, Any]]]:
    """Yield blocks: for each pair its score, whether it was truncated, and its fields. No block is empty.

    Raises InputError or ScoreError at a pair that cannot be read or scored, after the scores of those before it.
    """
    for found, block in _blocks(reranker, pairs):
        scores = sigmoid(found.logits) if normalize else found.logits
        yield [
            beside({"score": float(value), "truncated": bool(truncated)}, placed.fields)
            for value, truncated, placed in zip(scores, found.truncated, block, strict=True)
        ]
        on_progress(len(block))


def _blocks(reranker: Reranker, pairs: Iterable[PlacedPair]) -> Iterator[_Block]:
    size = _GPU_BLOCK_PAIRS if reranker.device.is_gpu else _BLOCK_PAIRS
    remaining, unreadable = iter(pairs), None
    while unreadable is None:
        block: list[PlacedPair] = []
        try:
            for pair in islice(remaining, size):
                block.append(pair)
        except InputError as error:
            unreadable = error
        if not block:
            break
        yield from _until_error(reranker, block)
    if unreadable is not None:
        raise unreadable


def _until_error(reranker: Reranker, block: Sequence[PlacedPair]) -> Iterator[_Block]:
    """Yield the scores of a block, in halves as long as one pair of it cannot be scored."""
    try:
        found = reranker.evaluate([placed.pair for placed in block])
    except (InputError, ScoreError) as error:
        if len(block) == 1:
            raise type(error)(_placed(error, [block[0].place])) from error
        middle = len(block) // 2
        yield from _until_error(reranker, block[:middle])
        yield from _until_error(reranker, block[middle:])
        return
    yield found, block


def _placed(error: Exception, places: Sequence[object]) -> str:
    """Return a message of the library, which knows pairs by their numbers, with their places."""

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        return str(places[number]) if number < len(places) else match[0]

    return re.sub(r"\bpair (\d+)\b", place, str(error))
