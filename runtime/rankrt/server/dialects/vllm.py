"""vLLM: /rerank with documents echoed, and /score of texts against texts."""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from rankrt.server.dialects import (
    BestOf,
    Count,
    Dialect,
    Endpoint,
    Flag,
    Priority,
    Request,
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
from rankrt.server.dialects.texts import Document, Documents, QueryDocument, Text, check_query, texts_of
from rankrt.server.evaluator import Answer, Ask
from rankrt.server.failures import Failure, Kind
from rankrt.text.pairs import Pair

Length: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=1_000_000_000)]
# One text, or a list of them. Parts of content need an object here, because a list of lists would be ambiguous.
Side: TypeAlias = str | Text | Annotated[list[Document], msgspec.Meta(extra_json_schema={"minItems": 1})]


class _Options(Request, frozen=True, kw_only=True):
    """The common fields of /rerank and /score; 0 means no limit, and truncate_prompt_tokens=-1 the model's own."""

    model: str | None = None
    truncate_prompt_tokens: Length | None = None
    truncation_side: Literal["left", "right"] | None = None
    max_tokens_per_doc: Count | None = None
    max_tokens_per_query: Count | None = None
    use_activation: Flag = None
    request_id: str | None = None
    priority: Priority | None = None


class VllmRerank(BestOf, _Options, frozen=True, kw_only=True):
    """POST /rerank, /v1/rerank or /v2/rerank. vLLM always echoes documents; here a request may decline."""

    query: QueryDocument
    documents: str | Text | Documents
    return_documents: Flag = None
    top_n: Count | None = None
    top_k: Count | None = None


class VllmDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document that is echoed."""

    text: str
    multi_modal: None = None


class VllmResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    index: int
    relevance_score: float
    document: VllmDocument | None = None


class VllmRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    id: str
    model: str
    usage: Usage
    results: list[VllmResult]


class VllmScore(_Options, frozen=True, kw_only=True):
    """POST /score or /v1/score: one text with many, or two lists of the same length.

    The two sides are called text_1 and text_2, queries and documents, queries and items, or data_1 and data_2.
    """

    text_1: Side | None = None
    text_2: Side | None = None
    queries: Side | None = None
    documents: Side | None = None
    items: Side | None = None
    data_1: Side | None = None
    data_2: Side | None = None


class VllmScoreItem(msgspec.Struct, frozen=True, kw_only=True):
    """The score of a pair; null if a partial answer has none."""

    index: int
    score: float | None
    object: str = "score"


class VllmScores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores in the order of the pairs."""

    id: str
    created: int
    model: str
    data: list[VllmScoreItem]
    usage: Usage
    object: str = "list"


_TYPES: dict[Kind, str] = {
    "unknown_model": "NotFoundError",
    "not_found": "NotFoundError",
    "unauthorized": "AuthenticationError",
    "overloaded": "RateLimitError",
    "timeout": "TimeoutError",
    "unavailable": "ServiceUnavailableError",
    "score": "InternalServerError",
    "internal": "InternalServerError",
}


VLLM = Dialect(
    name="vllm",
    error=lambda failure, status: error_of(failure, status, _TYPES, "BadRequestError"),
    error_type=OpenAIError,
    statuses={"invalid": 400, "empty": 400, "too_many": 400, "too_long": 400},
    models=models_of,
    health=lambda: None,
)
# vLLM itself passes instructions to a chat template, and refuses `normalize` with these words.
_REFUSED = {
    **REFUSED,
    **dict.fromkeys(("normalize", "raw_scores", "softmax", "activation"), "send `use_activation`, true or false"),
}


def _options(request: _Options) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if request.truncate_prompt_tokens == 0:
        raise Failure("invalid", "truncate_prompt_tokens is 0, which would leave nothing of a text")
    if request.truncate_prompt_tokens is not None:
        is_own = request.truncate_prompt_tokens == -1
        rules["max_length"] = None if is_own else request.truncate_prompt_tokens
    if request.truncation_side == "left":
        rules["truncation_side"] = "left"
    if request.max_tokens_per_doc:
        rules["passage_max_length"] = request.max_tokens_per_doc
    if request.max_tokens_per_query:
        rules["query_max_length"] = request.max_tokens_per_query
    return {"model": request.model, "priority": request.priority or 0, "rules": rules, **common_of(request)}


def _documents(request: VllmRerank) -> Sequence[Document]:
    return request.documents if isinstance(request.documents, list) else [request.documents]


def _kind(request: _Options) -> Literal["logit", "sigmoid"]:
    return "sigmoid" if is_set(request.use_activation, otherwise=True) else "logit"


def _rerank_ask(request: VllmRerank) -> Ask:
    return rerank_ask(request.query, _documents(request), **_options(request))


def _rerank_answer(request: VllmRerank, answer: Answer, request_id: str) -> VllmRanking:
    scores, texts = scores_of(answer, _kind(request)), texts_of(_documents(request))
    echo = is_set(request.return_documents, otherwise=True)
    return VllmRanking(
        id=f"rerank-{request.request_id or request_id}",
        model=answer.model.name,
        usage=usage_of(answer),
        results=[
            VllmResult(
                index=i,
                relevance_score=float(scores[i]),
                document=VllmDocument(text=texts[i]) if echo else None,
            )
            for i in rank(answer, request.n_best)
        ],
    )


def _score_ask(request: VllmScore) -> Ask:
    return Ask(pairs=_pairs(request), **_options(request))


def _pairs(request: VllmScore) -> list[Pair]:
    sides = [
        (first, second)
        for first, second in (
            (request.text_1, request.text_2),
            (request.queries, request.documents),
            (request.queries, request.items),
            (request.data_1, request.data_2),
        )
        if first is not None and second is not None
    ]
    if len(sides) != 1:
        raise Failure(
            "invalid",
            "expected one of text_1 and text_2, queries and documents, queries and items, data_1 and data_2",
        )
    firsts, seconds = (texts_of(side if isinstance(side, list) else [side]) for side in sides[0])
    if len(firsts) == 1:
        firsts *= len(seconds)
    if len(firsts) != len(seconds):
        raise Failure("invalid", f"{len(firsts)} texts with {len(seconds)}: expected one, or the same number of both")
    return [(check_query(first), second) for first, second in zip(firsts, seconds, strict=True)]


def _score_answer(request: VllmScore, answer: Answer, request_id: str) -> VllmScores:
    scores = scores_of(answer, _kind(request))
    return VllmScores(
        id=f"score-{request.request_id or request_id}",
        created=int(time.time()),
        model=answer.model.name,
        data=[
            VllmScoreItem(index=i, score=float(score) if is_scored else None)
            for i, (score, is_scored) in enumerate(zip(scores, answer.is_scored, strict=True))
        ],
        usage=usage_of(answer),
    )


ENDPOINTS = (
    Endpoint(
        dialect=VLLM,
        paths=("/rerank", "/v1/rerank", "/v2/rerank"),
        request=VllmRerank,
        response=VllmRanking,
        ask=_rerank_ask,
        answer=_rerank_answer,
        kind=_kind,
        summary="rank documents by how well they answer a query",
        example={"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "top_n": 1},
        refused=_REFUSED,
    ),
    Endpoint(
        dialect=VLLM,
        paths=("/score", "/v1/score"),
        request=VllmScore,
        response=VllmScores,
        ask=_score_ask,
        answer=_score_answer,
        kind=_kind,
        summary="score pairs of texts",
        example={"text_1": "what is panda?", "text_2": ["hi", "The giant panda is a bear."]},
        refused=_REFUSED,
    ),
)
