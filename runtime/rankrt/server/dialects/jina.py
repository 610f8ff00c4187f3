"""Jina AI: /v1/rerank, documents echoed unless it is asked not to."""

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Documents,
    Endpoint,
    QueryDocument,
    Request,
    Text,
    TopN,
    Usage,
    deadline_of,
    ranked,
    rerank_ask,
    scores_of,
    texts_of,
    usage_of,
)
from rankrt.server.engine import Answer, Ask


class JinaRerank(Request, frozen=True, kw_only=True):
    """POST /v1/rerank."""

    query: QueryDocument
    documents: Documents
    model: str | None = None
    top_n: TopN | None = None
    return_documents: bool | None = True


class JinaResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    index: int
    relevance_score: float
    document: Text | None = None


class JinaRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    model: str
    usage: Usage
    results: list[JinaResult]


class JinaError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    detail: str


JINA = Dialect(name="jina", error=lambda failure, status: JinaError(detail=failure.message), error_type=JinaError)


def _ask(request: JinaRerank) -> Ask:
    return rerank_ask(request.query, request.documents, model=request.model, **deadline_of(request))


def _answer(request: JinaRerank, answer: Answer, request_id: str) -> JinaRanking:
    scores, texts = scores_of(answer, raw=False), texts_of(request.documents)
    return JinaRanking(
        model=answer.model.name,
        usage=usage_of(answer),
        results=[
            JinaResult(
                index=i,
                relevance_score=float(scores[i]),
                document=Text(text=texts[i]) if request.return_documents is not False else None,
            )
            for i in ranked(answer, request.top_n)
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
    ),
)
