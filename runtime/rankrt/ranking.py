"""What a rank call answers: documents in order of relevance, and what it took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from rankrt.text.options import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document and its score.

    index      its place in the list that was given
    score      the model's logit, or its sigmoid if `normalize` was asked for
    truncated  whether the model saw only its beginning
    span       the characters of the window that scored best, where long documents are chunked
    """

    index: int
    score: float
    document: str
    truncated: bool
    span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What a progressive ranking computed.

    layers       the exits' layers
    n_documents  how many documents ran to each exit
    n_checked    how many of those that had stopped were run to the end after all
    share_saved  of the layers' work for all tokens
    """

    layers: tuple[int, ...]
    n_documents: tuple[int, ...]
    n_checked: int
    share_saved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Sequence[Hit]):
    """Hits, the most relevant first; equal scores keep the order in which they were given.

    n_documents      how many documents were scored, of which `hits` may be the top n
    n_tokens         how many tokens the model computed, in whichever precision
    n_saved_tokens   how many tokens it did not have to, because all rows of a query begin alike
    n_refined        how many documents were scored again in the precision that `refine` named
    query_truncated  whether the model saw only the beginning of the query
    progress         what was computed, where the ranking was progressive
    """

    hits: tuple[Hit, ...]
    n_documents: int
    n_tokens: int
    query_truncated: bool
    n_refined: int = 0
    n_saved_tokens: int = 0
    progress: Stages | None = None

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)
