"""llama.cpp's server: Jina's request, and logits as they are: it knows no activation."""

from typing import Literal

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Documents,
    Endpoint,
    Query,
    Request,
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
from rankrt.server.failures import Kind


class LlamacppRerank(Request, frozen=True, kw_only=True):
    """POST /rerank, /reranking, /v1/rerank or /v1/reranking."""

    query: Query
    documents: Documents
    model: str | None = None
    top_n: TopN | None = None


class LlamacppResult(msgspec.Struct, frozen=True, kw_only=True):
    """A document in the order of relevance; the score is the logit."""

    index: int
    relevance_score: float


class LlamacppRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    model: str
    usage: Usage
    results: list[LlamacppResult]
    object: Literal["list"] = "list"


_TYPES: dict[Kind, str] = {
    "unauthorized": "authentication_error",
    "unknown_model": "not_found_error",
    "unavailable": "unavailable_error",
    "overloaded": "exceed_limit_error",
    "timeout": "server_error",
    "score": "server_error",
    "internal": "server_error",
}

LLAMACPP = Dialect(
    name="llamacpp",
    error=lambda failure, status: VllmError(
        error=VllmErrorDetail(
            message=failure.message, type=_TYPES.get(failure.kind, "invalid_request_error"), code=status
        )
    ),
    error_type=VllmError,
    statuses={"invalid": 400, "empty": 400, "too_long": 400},
)


def _ask(request: LlamacppRerank) -> Ask:
    return rerank_ask(request.query, request.documents, model=request.model, **deadline_of(request))


def _answer(request: LlamacppRerank, answer: Answer, request_id: str) -> LlamacppRanking:
    scores = scores_of(answer, raw=True)
    results = [LlamacppResult(index=i, relevance_score=float(scores[i])) for i in ranked(answer, request.top_n)]
    return LlamacppRanking(model=answer.model.name, usage=usage_of(answer), results=results)


ENDPOINTS = (
    Endpoint(
        dialect=LLAMACPP,
        paths=("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"),
        request=LlamacppRerank,
        response=LlamacppRanking,
        ask=_ask,
        answer=_answer,
        summary="rank documents by how well they answer a query",
    ),
)
