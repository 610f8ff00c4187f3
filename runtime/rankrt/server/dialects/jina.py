"""Jina AI: /v1/rerank, with documents echoed unless the request declines."""

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
from rankrt.server.dialects.openai import models_of
from rankrt.server.dialects.texts import Documents, QueryDocument, texts_of
from rankrt.server.evaluator import Answer, Ask


class JinaRerank(Limited, frozen=True, kw_only=True):
    """POST /v1/rerank."""

    query: QueryDocument
    documents: Documents
    model: str | None = None
    return_documents: Flag = None


class JinaText(msgspec.Struct, frozen=True):
    """A document that is echoed."""

    text: str


class JinaResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    index: int
    relevance_score: float
    document: JinaText | None = None


class JinaRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    model: str
    usage: Usage
    results: list[JinaResult]


class JinaError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    detail: str


JINA = Dialect(
    name="jina",
    error=lambda failure, status: JinaError(detail=failure.message),
    error_type=JinaError,
    models=models_of,
)


def _ask(request: JinaRerank) -> Ask:
    return rerank_ask(request.query, request.documents, model=request.model, **common_of(request))


def _answer(request: JinaRerank, answer: Answer, request_id: str) -> JinaRanking:
    scores, texts = scores_of(answer, "sigmoid"), texts_of(request.documents)
    echo = is_set(request.return_documents, otherwise=True)
    return JinaRanking(
        model=answer.model.name,
        usage=usage_of(answer),
        results=[
            JinaResult(
                index=i,
                relevance_score=float(scores[i]),
                document=JinaText(text=texts[i]) if echo else None,
            )
            for i in rank(answer, request.n_best)
        ],
    )


ENDPOINTS = (
    Endpoint(
        dialect=JINA,
        paths=("/v1/rerank",),
        request=JinaRerank,
        response=JinaRanking,
        ask=_ask,
        answer=_answer,
        summary="rank documents by how well they answer a query",
        example={"model": "any", "query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]},
    ),
)
