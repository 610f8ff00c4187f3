"""Infinity: /rerank, with documents echoed as plain strings on request."""

import time
from typing import Literal

import msgspec

from rankrt.server.dialects import (
    Card,
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
from rankrt.server.dialects.openai import OpenAIError, error_of
from rankrt.server.dialects.texts import Query, Texts
from rankrt.server.evaluator import Answer, Ask

_ANY_MODEL = "default/not-specified"


class InfinityRerank(Limited, frozen=True, kw_only=True):
    """POST /rerank."""

    query: Query
    documents: Texts
    model: str | None = _ANY_MODEL
    return_documents: Flag = None
    raw_scores: Flag = None


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


class InfinityStats(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the server is; a batch is one run, in tokens."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class InfinityModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served."""

    id: str
    stats: InfinityStats
    created: int
    dtype: str
    device: str
    revision: str | None
    object: Literal["model"] = "model"
    owned_by: Literal["infinity"] = "infinity"
    backend: str = "optimum"
    capabilities: list[str] = msgspec.field(default_factory=lambda: ["rerank"])


class InfinityModels(msgspec.Struct, frozen=True, kw_only=True):
    """The models that are served."""

    data: list[InfinityModel]
    object: Literal["list"] = "list"


class InfinityHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The server's clock."""

    unix: float


INFINITY = Dialect(
    name="infinity",
    error=lambda failure, status: error_of(failure, status, {}, failure.kind),
    error_type=OpenAIError,
    statuses={"unknown_model": 400},
    models_paths=("/models",),
    models=lambda cards: InfinityModels(data=[_model(card) for card in cards]),
    health=lambda: InfinityHealth(unix=time.time()),
)


def _model(card: Card) -> InfinityModel:
    stats = InfinityStats(
        queue_fraction=card.queue_tokens / card.max_queue_tokens,
        queue_absolute=card.queue_tokens,
        results_pending=card.n_waiting,
        batch_size=card.run_tokens,
    )
    return InfinityModel(
        id=card.name,
        stats=stats,
        created=card.created,
        dtype=card.precision,
        device=card.device,
        revision=card.revision,
    )


def _kind(request: InfinityRerank) -> Literal["logit", "sigmoid"]:
    return "logit" if is_set(request.raw_scores) else "sigmoid"


def _ask(request: InfinityRerank) -> Ask:
    named = None if request.model == _ANY_MODEL else request.model
    return rerank_ask(request.query, request.documents, model=named, **common_of(request))


def _answer(request: InfinityRerank, answer: Answer, request_id: str) -> InfinityRanking:
    scores, echo = scores_of(answer, _kind(request)), is_set(request.return_documents)
    return InfinityRanking(
        results=[
            InfinityResult(
                relevance_score=float(scores[i]),
                index=i,
                document=request.documents[i] if echo else None,
            )
            for i in rank(answer, request.n_best)
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
        kind=_kind,
        summary="rank documents by how well they answer a query",
        example={"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "raw_scores": True},
        refused={
            **REFUSED,
            **dict.fromkeys(("normalize", "softmax", "activation"), "send `raw_scores`, true or false"),
        },
    ),
)
