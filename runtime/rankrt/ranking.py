"""What a rank call answers, and the three ways to order documents: plainly, refined, and progressively.

Knows scores and what they took; how documents are scored is the scorer's business.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from rankrt import refinement
from rankrt.arrays import Float32Array, Int64Array
from rankrt.llm.progressive import Policy
from rankrt.scale import Scale, ScoreKind, reaches
from rankrt.scoring import OnProgress, Scored, Scorer
from rankrt.text.options import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document and its score.

    index      its place in the list that was given
    score      the model's logit; its sigmoid if `normalize` was asked for, a probability if `calibrated` was
    truncated  whether the model saw only its beginning
    span       the characters of the window that scored best, where long documents are chunked
    score_kind  what `score` is: a logit, the sigmoid of one, or a probability
    """

    index: int
    score: float
    document: str
    truncated: bool
    span: Span | None = None
    score_kind: ScoreKind = "logit"


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

    n_documents      how many documents were scored; hits may be the top n only, or those that reach a threshold
    n_tokens         how many tokens the model computed, in whichever precision
    n_saved_tokens   how many tokens it did not have to, because all rows of a query begin alike
    n_refined        how many documents were scored again in the precision that `refine` named
    query_truncated  whether the model saw only the beginning of the query
    progress         the work at each exit, where the ranking was progressive
    score_kind       what the hits' scores are, as each of them says
    """

    hits: tuple[Hit, ...]
    n_documents: int
    n_tokens: int
    query_truncated: bool
    n_refined: int = 0
    n_saved_tokens: int = 0
    progress: Stages | None = None
    score_kind: ScoreKind = "logit"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """Documents in their order, (n,), with the scores of all, and what finding the order took."""

    order: Int64Array
    scored: Scored
    n_refined: int = 0
    progress: Stages | None = None

    def ranking(
        self, documents: Sequence[str], scale: Scale, *, threshold: float | None = None, has_spans: bool = False
    ) -> Ranking:
        """Return the hits that reach a threshold on a scale, with the windows that scored best if there are any."""
        scored, scores = self.scored, scale.scores(self.scored.logits)
        kept = self.order[reaches(scores[self.order], threshold)]
        return Ranking(
            hits=tuple(
                Hit(
                    index=i,
                    score=float(scores[i]),
                    document=documents[i],
                    truncated=bool(scored.truncated[i]),
                    span=(int(scored.spans[i, 0]), int(scored.spans[i, 1])) if has_spans else None,
                    score_kind=scale.kind,
                )
                for i in map(int, kept)
            ),
            n_documents=len(documents),
            n_tokens=scored.n_tokens,
            n_saved_tokens=scored.n_saved_tokens,
            query_truncated=bool(scored.query_truncated.any()),
            n_refined=self.n_refined,
            progress=self.progress,
            score_kind=scale.kind,
        )


def order_plainly(
    scorer: Scorer, query: str, documents: Sequence[str], top_n: int | None, on_progress: OnProgress | None
) -> Ordered:
    """Score all documents and keep the best."""
    scored = scorer.score([(query, document) for document in documents], on_progress)
    return Ordered(order=np.argsort(-scored.logits, kind="stable")[:top_n], scored=scored)


def order_refined(
    plain: Ordered, exact: Scorer, query: str, documents: Sequence[str], top_n: int, drift: float
) -> Ordered:
    """Score again, exactly, the documents that may be among the first `top_n` if no score drifts by more than that."""
    known = plain.scored

    def score_again(chosen: Int64Array) -> Float32Array:
        nonlocal known
        again = exact.score([(query, documents[i]) for i in chosen])
        known = known.with_scores_of(again, chosen)
        return again.logits

    found = refinement.refine(plain.scored.logits, top_n, drift, score_again)
    return Ordered(order=found.order, scored=known, n_refined=found.n_refined)


def order_progressively(scorer: Scorer, query: str, documents: Sequence[str], top_n: int, policy: Policy) -> Ordered:
    """Score each document only as far as it has to go for the first `top_n` to be known."""
    pairs = [(query, document) for document in documents]
    if not pairs:
        return Ordered(order=np.zeros(0, np.int64), scored=scorer.score(pairs))
    scored, progress = scorer.score_progressively(pairs, top_n, policy)
    candidates = progress.finished
    return Ordered(
        order=candidates[np.argsort(-scored.logits[candidates], kind="stable")][:top_n],
        scored=scored,
        progress=Stages(
            layers=policy.layers,
            n_documents=progress.n_rows,
            n_checked=progress.n_checked,
            share_saved=progress.share_saved,
        ),
    )
