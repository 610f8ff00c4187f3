"""Rankings of candidates, and what makes them: a system is anything that ranks. Knows no model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from rankrt.arrays import BoolArray, Float32Array, Int64Array

# Enough pairs for the planner to put rows of one length side by side, few enough that Ctrl-C loses seconds.
BLOCK_PAIRS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A query with the texts of its candidates."""

    query: str
    documents: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Candidates in a system's order.

    order        (n,) candidates by their places, best first
    scores       (n,) the score of each candidate, in their own order; NaN for one that got none
    n_truncated  how many pairs were cut; None where that is not known
    """

    order: Int64Array
    scores: Float32Array
    n_truncated: int | None = None


# Ranks the candidates of some queries.
Rank: TypeAlias = Callable[[Sequence[Asked]], list[Ranked]]


class System(Protocol):
    """Something that ranks.

    name         its row's
    identity     what its scores depend on
    weights      the same for systems with the same weights, whose scores should be alike
    block_pairs  how many pairs are ranked at once, if a query does not have more
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def identity(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def weights(self) -> str: ...  # noqa: D102
    @property
    def block_pairs(self) -> int: ...  # noqa: D102

    def open(self) -> AbstractContextManager[Rank]:
        """Load the model, and yield what ranks."""
        ...


def split(logits: Float32Array, truncated: BoolArray | None, asked: Sequence[Asked]) -> list[Ranked]:
    """Return the rankings of queries by the scores of all their pairs; equal scores keep the candidates' order."""
    found, start = list[Ranked](), 0
    for one in asked:
        of_query = slice(start, start + len(one.documents))
        found.append(
            Ranked(
                order=np.argsort(-logits[of_query], kind="stable"),
                scores=logits[of_query],
                n_truncated=None if truncated is None else int(truncated[of_query].sum()),
            )
        )
        start = of_query.stop
    return found
