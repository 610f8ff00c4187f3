"""Cohere: /v2/rerank, strict about fields, and /v1/rerank with documents of several fields."""

import functools
from typing import Annotated, Any

import msgspec

from rankrt.server.dialects import (
    Count,
    Dialect,
    Endpoint,
    Flag,
    Priority,
    Request,
    Some,
    common_of,
    is_set,
    rank,
    rerank_ask,
    scores_of,
)
from rankrt.server.dialects.texts import Fields, Query, Texts, text_of_fields
from rankrt.server.evaluator import Answer, Ask

# Cohere's unit of search: a query with up to so many documents.
_DOCUMENTS_A_UNIT = 100
# The most tokens of a document without max_tokens_per_doc.
_TOKENS_PER_DOC = 4096


class CohereRerankV2(Request, frozen=True, kw_only=True):
    """POST /v2/rerank. `priority` 0 is the highest. litellm sends v1's `return_documents`, LangChain sends nulls."""

    model: str
    query: Query
    documents: Texts
    top_n: Count | None = None
    max_tokens_per_doc: Some | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=999)] | None = None
    return_documents: Flag = None


class CohereRerankV1(Request, frozen=True, kw_only=True):
    """POST /v1/rerank. Documents are texts, or objects of which `rank_fields` are ranked by (default: text)."""

    query: Query
    documents: Annotated[list[str | Fields], msgspec.Meta(extra_json_schema={"minItems": 1})]
    model: str | None = None
    top_n: Count | None = None
    rank_fields: list[str] | None = None
    return_documents: Flag = None
    priority: Priority | None = None


class CohereResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class CohereVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version of the API."""

    version: str


class CohereUnits(msgspec.Struct, frozen=True, kw_only=True):
    """The units that Cohere would bill: one search for every 100 documents."""

    search_units: float


class CohereTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all rows."""

    input_tokens: float
    output_tokens: float = 0.0


class CohereMeta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The cost of the request; `cached_tokens` were not computed for it."""

    api_version: CohereVersion
    billed_units: CohereUnits
    tokens: CohereTokens
    cached_tokens: float
    warnings: list[str] | None = None


class CohereRanking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance."""

    id: str
    results: list[CohereResult]
    meta: CohereMeta


class CohereError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    message: str


class CohereModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served."""

    name: str
    context_length: float
    endpoints: list[str] = msgspec.field(default_factory=lambda: ["rerank"])
    finetuned: bool = False
    is_deprecated: bool = False


class CohereModels(msgspec.Struct, frozen=True, kw_only=True):
    """The models that are served."""

    models: list[CohereModel]


COHERE = Dialect(
    name="cohere",
    error=lambda failure, status: CohereError(message=failure.message),
    error_type=CohereError,
    statuses={"empty": 400},
    is_strict=True,
    models=lambda cards: CohereModels(
        models=[CohereModel(name=card.name, context_length=float(card.max_length)) for card in cards]
    ),
)


def _v2_ask(request: CohereRerankV2) -> Ask:
    return rerank_ask(
        request.query,
        request.documents,
        model=request.model,
        priority=request.priority or 0,
        rules={"passage_max_length": request.max_tokens_per_doc or _TOKENS_PER_DOC},
        **common_of(request),
    )


def _v1_ask(request: CohereRerankV1) -> Ask:
    texts = [text_of_fields(document, request.rank_fields) for document in request.documents]
    return rerank_ask(request.query, texts, model=request.model, priority=request.priority or 0, **common_of(request))


def _ranking(request: CohereRerankV1 | CohereRerankV2, answer: Answer, request_id: str, version: str) -> CohereRanking:
    scores, echo = scores_of(answer, "sigmoid"), is_set(request.return_documents)
    results = []
    for i in rank(answer, request.top_n or None):
        document = request.documents[i]
        shown = {"text": document} if isinstance(document, str) else dict(document)
        results.append(CohereResult(index=i, relevance_score=float(scores[i]), document=shown if echo else None))
    return CohereRanking(id=request_id, results=results, meta=_meta(answer, version))


def _meta(answer: Answer, version: str) -> CohereMeta:
    return CohereMeta(
        api_version=CohereVersion(version=version),
        billed_units=CohereUnits(search_units=float(-(-len(answer.logits) // _DOCUMENTS_A_UNIT))),
        tokens=CohereTokens(input_tokens=float(answer.n_tokens)),
        cached_tokens=float(answer.n_cached),
        warnings=_warnings(answer) or None,
    )


def _warnings(answer: Answer) -> list[str]:
    warnings = []
    if n_cut := int(answer.truncated.sum()):
        warnings.append(f"{n_cut} of {len(answer.truncated)} documents were truncated")
    if answer.query_truncated.any():
        warnings.append("the query was truncated")
    if not answer.is_complete:
        warnings.append(f"{int((~answer.is_scored).sum())} documents were not scored in time")
    return warnings


ENDPOINTS = (
    Endpoint(
        dialect=COHERE,
        paths=("/v2/rerank",),
        request=CohereRerankV2,
        response=CohereRanking,
        ask=_v2_ask,
        answer=functools.partial(_ranking, version="2"),
        summary="rank documents by how well they answer a query",
        example={"model": "any", "query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]},
        harmless=(),
    ),
    Endpoint(
        dialect=COHERE,
        paths=("/v1/rerank",),
        request=CohereRerankV1,
        response=CohereRanking,
        ask=_v1_ask,
        answer=functools.partial(_ranking, version="1"),
        summary="rank documents, or fields of documents, by how well they answer a query",
        example={"query": "what is panda?", "documents": [{"text": "hi"}, {"text": "A bear."}], "top_n": 1},
        harmless=(),
    ),
)
