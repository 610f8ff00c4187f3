"""Infinity: /rerank, documents echoed as plain strings when they are asked for."""

import time
from typing import Literal

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Endpoint,
    Query,
    Request,
    Texts,
    TopN,
    Usage,
    deadline_of,
    ranked,
    rerank_ask,
    scores_of,
    usage_of,
)
from rankrt.server.dialects.vllm import VllmError, VllmErrorDetail
from rankrt.server.engine import Answer, Ask


class InfinityRerank(Request, frozen=True, kw_only=True):
    """POST /rerank."""

    query: Query
    documents: Texts
    model: str = "default/not-specified"
    top_n: TopN | None = None
    return_documents: bool = False
    raw_scores: bool = False


class InfinityResult(msgspec.Struct, frozen=True, kw_only=True):
    """A document in the order of relevance."""

    relevance_score: float
    index: int
    document: str | None = None


class InfinityRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    results: list[InfinityResult]
    model: str
    usage: Usage
    id: str
    created: int
    object: Literal["rerank"] = "rerank"


INFINITY = Dialect(
    name="infinity",
    error=lambda failure, status: VllmError(
        error=VllmErrorDetail(message=failure.message, type=failure.kind, code=status)
    ),
    error_type=VllmError,
    statuses={"unknown_model": 400},
)


def _ask(request: InfinityRerank) -> Ask:
    named = None if request.model == "default/not-specified" else request.model
    return rerank_ask(request.query, request.documents, model=named, **deadline_of(request))


def _answer(request: InfinityRerank, answer: Answer, request_id: str) -> InfinityRanking:
    scores = scores_of(answer, raw=request.raw_scores)
    return InfinityRanking(
        results=[
            InfinityResult(
                relevance_score=float(scores[i]),
                index=i,
                document=request.documents[i] if request.return_documents else None,
            )
            for i in ranked(answer, request.top_n)
        ],
        model=answer.model.name,
        usage=usage_of(answer),
        id=f"infinity-{request_id}",
        created=int(time.time()),
    )


ENDPOINTS = (
    Endpoint(
        dialect=INFINITY,
        paths=("/rerank",),
        request=InfinityRerank,
        response=InfinityRanking,
        ask=_ask,
        answer=_answer,
        summary="rank documents by how well they answer a query",
    ),
)
