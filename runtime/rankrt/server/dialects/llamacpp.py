"""llama.cpp's server: Jina's request, answered with logits. It has no activation."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Endpoint,
    Flag,
    Limited,
    Usage,
    common_of,
    is_set,
    rank,
    rerank_ask,
    scores_of,
    usage_of,
)
from rankrt.server.dialects.fields import REFUSED
from rankrt.server.dialects.openai import OpenAIError, error_of, models_of
from rankrt.server.dialects.texts import Document, Documents, Query, texts_of
from rankrt.server.evaluator import Answer, Ask
from rankrt.server.failures import Failure, Kind


class LlamacppRerank(Limited, frozen=True, kw_only=True):
    """POST /rerank, /reranking, /v1/rerank or /v1/reranking, with `documents`, or as TEI's clients with `texts`."""

    query: Query
    documents: Documents | None = None
    texts: Documents | None = None
    return_text: Flag = None
    model: str | None = None


class LlamacppResult(msgspec.Struct, frozen=True, kw_only=True):
    """A document in the order of relevance; the score is the logit."""

    index: int
    relevance_score: float


class LlamacppRank(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A text in the order of relevance, as TEI's clients read it; the score is the logit."""

    index: int
    score: float
    text: str | None = None


class LlamacppRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    model: str
    usage: Usage
    results: list[LlamacppResult]
    object: Literal["list"] = "list"


_TYPES: dict[Kind, str] = {
    "unauthorized": "authentication_error",
    "unknown_model": "not_found_error",
    "not_found": "not_found_error",
    "unavailable": "unavailable_error",
    "overloaded": "exceed_limit_error",
    "timeout": "server_error",
    "score": "server_error",
    "internal": "server_error",
}


class LlamacppHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The server can rank."""

    status: Literal["ok"] = "ok"


LLAMACPP = Dialect(
    name="llamacpp",
    error=lambda failure, status: error_of(failure, status, _TYPES, "invalid_request_error"),
    error_type=OpenAIError,
    statuses={"invalid": 400, "empty": 400, "too_many": 400, "too_long": 400},
    models_paths=("/v1/models", "/models"),
    models=models_of,
    health=LlamacppHealth,
)


def _documents(request: LlamacppRerank) -> Sequence[Document]:
    if request.documents is not None and request.texts is not None:
        raise Failure("invalid", "expected either `documents` or `texts`")
    return request.documents or request.texts or []


def _ask(request: LlamacppRerank) -> Ask:
    return rerank_ask(request.query, _documents(request), model=request.model, **common_of(request))


def _answer(request: LlamacppRerank, answer: Answer, request_id: str) -> LlamacppRanking | list[LlamacppRank]:
    scores, order = scores_of(answer, "logit"), rank(answer, request.n_best)
    if request.texts is not None:
        texts = texts_of(request.texts) if is_set(request.return_text) else None
        return [LlamacppRank(index=i, score=float(scores[i]), text=texts[i] if texts else None) for i in order]
    results = [LlamacppResult(index=i, relevance_score=float(scores[i])) for i in order]
    return LlamacppRanking(model=answer.model.name, usage=usage_of(answer), results=results)


_LOGITS = "llama.cpp answers logits; other paths answer scores between 0 and 1"

ENDPOINTS = (
    Endpoint(
        dialect=LLAMACPP,
        paths=("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"),
        request=LlamacppRerank,
        response=LlamacppRanking | list[LlamacppRank],
        ask=_ask,
        answer=_answer,
        kind=lambda request: "logit",
        summary="rank documents by how well they answer a query",
        example={"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "top_n": 1},
        refused={**REFUSED, **dict.fromkeys(("normalize", "softmax", "activation", "use_activation"), _LOGITS)},
    ),
)
