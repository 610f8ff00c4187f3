"""NVIDIA's NIM for reranking: /v1/ranking of `passages`, answered with logits."""

from typing import Annotated, Literal

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Endpoint,
    Limited,
    Usage,
    common_of,
    rank,
    rerank_ask,
    scores_of,
    usage_of,
)
from rankrt.server.dialects.openai import models_of
from rankrt.server.dialects.texts import Query, Text
from rankrt.server.evaluator import Answer, Ask


class NimRerank(Limited, frozen=True, kw_only=True):
    """POST /v1/ranking. A long text is cut unless `truncate` is NONE; NVIDIA's own server refuses it by default."""

    query: Query | Text
    passages: Annotated[list[Text], msgspec.Meta(extra_json_schema={"minItems": 1})]
    model: str | None = None
    truncate: Literal["NONE", "END"] | None = None


class NimRank(msgspec.Struct, frozen=True, kw_only=True):
    """A passage in the order of relevance."""

    index: int
    logit: float


class NimRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The passages in the order of relevance."""

    rankings: list[NimRank]
    usage: Usage


class NimError(msgspec.Struct, frozen=True, kw_only=True):
    """An error; LangChain's client shows `message` and `detail`."""

    message: str
    detail: str
    type: str
    object: Literal["error"] = "error"


NIM = Dialect(
    name="nim",
    error=lambda failure, status: NimError(message=failure.message, detail=failure.message, type=failure.kind),
    error_type=NimError,
    models=models_of,
)


def _ask(request: NimRerank) -> Ask:
    may_cut = request.truncate != "NONE"
    return rerank_ask(request.query, request.passages, model=request.model, may_cut=may_cut, **common_of(request))


def _answer(request: NimRerank, answer: Answer, request_id: str) -> NimRanking:
    scores = scores_of(answer, "logit")
    rankings = [NimRank(index=i, logit=float(scores[i])) for i in rank(answer, request.n_best)]
    return NimRanking(rankings=rankings, usage=usage_of(answer))


ENDPOINTS = (
    Endpoint(
        dialect=NIM,
        paths=("/v1/ranking", "/v1/reranking"),
        request=NimRerank,
        response=NimRanking,
        ask=_ask,
        answer=_answer,
        kind=lambda request: "logit",
        summary="rank passages by how well they answer a query, with logits",
        example={"query": {"text": "what is panda?"}, "passages": [{"text": "hi"}, {"text": "A bear."}]},
    ),
)
