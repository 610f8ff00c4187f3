"""The rankings of several queries, one after another. Knows no stream and no format."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rankrt.cli.inputs import Query
from rankrt.cli.outputs import Answer
from rankrt.errors import ScoreError
from rankrt.reranker import Reranker


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
            raise ScoreError(placed(error, [document.place for document in documents])) from error
        yield Answer(query=query, ranking=ranking)


def placed(error: Exception, places: Sequence[object]) -> str:
    """Return a message of the library, which knows pairs by their numbers, with their places."""

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        return str(places[number]) if number < len(places) else match[0]

    return re.sub(r"\bpair (\d+)\b", place, str(error))
