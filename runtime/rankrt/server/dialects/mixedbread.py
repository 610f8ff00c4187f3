"""Mixedbread: /v1/reranking of an `input` of texts, or of objects with fields to rank by."""

from typing import Annotated, Any, Literal

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
from rankrt.server.dialects.texts import Fields, Query, text_of_fields
from rankrt.server.evaluator import Answer, Ask


class MixedbreadRerank(Limited, frozen=True, kw_only=True):
    """POST /v1/reranking. Objects are ranked by `rank_fields`, or by their `text`."""

    query: Query
    input: Annotated[list[str | Fields], msgspec.Meta(extra_json_schema={"minItems": 1})]
    model: str | None = None
    rank_fields: list[str] | None = None
    return_input: Flag = None


class MixedbreadResult(msgspec.Struct, frozen=True, kw_only=True):
    """An input in the order of relevance."""

    index: int
    score: float
    input: Any = None
    object: Literal["rank_result"] = "rank_result"


class MixedbreadRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs in the order of relevance."""

    usage: Usage
    model: str
    data: list[MixedbreadResult]
    top_k: int
    return_input: bool
    object: Literal["list"] = "list"


class MixedbreadError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    detail: str


MIXEDBREAD = Dialect(
    name="mixedbread",
    error=lambda failure, status: MixedbreadError(detail=failure.message),
    error_type=MixedbreadError,
)


def _ask(request: MixedbreadRerank) -> Ask:
    texts = [text_of_fields(document, request.rank_fields) for document in request.input]
    return rerank_ask(request.query, texts, model=request.model, **common_of(request))


def _answer(request: MixedbreadRerank, answer: Answer, request_id: str) -> MixedbreadRanking:
    scores, echo = scores_of(answer, "sigmoid"), is_set(request.return_input)
    best = rank(answer, request.n_best)
    return MixedbreadRanking(
        usage=usage_of(answer),
        model=answer.model.name,
        data=[
            MixedbreadResult(index=i, score=float(scores[i]), input=request.input[i] if echo else None) for i in best
        ],
        top_k=len(best),
        return_input=echo,
    )


ENDPOINTS = (
    Endpoint(
        dialect=MIXEDBREAD,
        paths=("/v1/reranking",),
        request=MixedbreadRerank,
        response=MixedbreadRanking,
        ask=_ask,
        answer=_answer,
        summary="rank inputs, or fields of inputs, by how well they answer a query",
        example={"query": "what is panda?", "input": ["hi", "The giant panda is a bear."], "return_input": True},
    ),
)
