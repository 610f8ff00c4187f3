"""Voyage AI: /v1/rerank, with `top_k`, and the results as `data`."""

from typing import Literal

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Endpoint,
    Flag,
    Limited,
    common_of,
    is_set,
    rank,
    rerank_ask,
    scores_of,
)
from rankrt.server.dialects.texts import Query, Texts
from rankrt.server.evaluator import Answer, Ask


class VoyageRerank(Limited, frozen=True, kw_only=True):
    """POST /v1/rerank; `truncation` is true by default."""

    query: Query
    documents: Texts
    model: str | None = None
    return_documents: Flag = None
    truncation: Flag = None


class VoyageResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    relevance_score: float
    index: int
    document: str | None = None


class VoyageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all rows."""

    total_tokens: int


class VoyageRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    data: list[VoyageResult]
    model: str
    usage: VoyageUsage
    object: Literal["list"] = "list"


class VoyageError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    detail: str


VOYAGE = Dialect(
    name="voyage",
    error=lambda failure, status: VoyageError(detail=failure.message),
    error_type=VoyageError,
    statuses={"invalid": 400, "empty": 400, "too_many": 400, "too_long": 400},
)


def _ask(request: VoyageRerank) -> Ask:
    may_cut = is_set(request.truncation, otherwise=True)
    return rerank_ask(request.query, request.documents, model=request.model, may_cut=may_cut, **common_of(request))


def _answer(request: VoyageRerank, answer: Answer, request_id: str) -> VoyageRanking:
    scores, echo = scores_of(answer, "sigmoid"), is_set(request.return_documents)
    return VoyageRanking(
        data=[
            VoyageResult(relevance_score=float(scores[i]), index=i, document=request.documents[i] if echo else None)
            for i in rank(answer, request.n_best)
        ],
        model=answer.model.name,
        usage=VoyageUsage(total_tokens=answer.n_tokens),
    )


ENDPOINTS = (
    Endpoint(
        dialect=VOYAGE,
        paths=("/v1/rerank",),
        request=VoyageRerank,
        response=VoyageRanking,
        ask=_ask,
        answer=_answer,
        summary="rank documents by how well they answer a query",
        example={"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "top_k": 1},
    ),
)
