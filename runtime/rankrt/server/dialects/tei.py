"""Text Embeddings Inference 1.9: `texts` in, a bare array out."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from rankrt.server.dialects import Dialect, Endpoint, Query, Request, Texts, check_query, ranked, rerank_ask, scores_of
from rankrt.server.engine import Answer, Ask
from rankrt.server.failures import Failure, Kind

Direction: TypeAlias = Literal["Left", "Right", "left", "right"]
Pair: TypeAlias = Annotated[list[str], msgspec.Meta(min_length=2, max_length=2)]
_PAIR = {"type": "array", "prefixItems": [{"type": "string", "pattern": r"\S"}, {"type": "string"}], "items": False}
_INPUTS: dict[str, Any] = {"anyOf": [{**_PAIR, "minItems": 2}, {"type": "array", "items": {**_PAIR, "minItems": 2}}]}


class _Options(Request, frozen=True, kw_only=True):
    """What /rerank and /predict have in common; `truncate` is true unless it is said to be false."""

    truncate: bool | None = None
    truncation_direction: Direction = "right"
    raw_scores: bool = False
    model: str | None = None


class TeiRerank(_Options, frozen=True, kw_only=True):
    """POST /rerank."""

    query: Query
    texts: Texts
    return_text: bool = False


class TeiRank(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    index: int
    score: float
    text: str | None = None


class TeiPredict(_Options, frozen=True, kw_only=True):
    """POST /predict: one pair, or several."""

    inputs: Annotated[list[str | Pair], msgspec.Meta(min_length=1, extra_json_schema=_INPUTS)]


class TeiPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """A score with the label that a reranker has only one of."""

    score: float
    label: str = "LABEL_0"


class TeiError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


_TYPES: dict[Kind, Any] = {
    "empty": "Empty",
    "overloaded": "Overloaded",
    "unavailable": "Unhealthy",
    "timeout": "Backend",
    "score": "Backend",
    "internal": "Backend",
}

TEI = Dialect(
    name="tei",
    error=lambda failure, status: TeiError(error=failure.message, error_type=_TYPES.get(failure.kind, "Validation")),
    error_type=TeiError,
    statuses={"empty": 400, "score": 424},
)


def _options(request: _Options) -> dict[str, Any]:
    is_left = request.truncation_direction.lower() == "left"
    return {
        "model": request.model,
        "timeout_ms": request.timeout_ms,
        "is_partial": request.partial_results,
        "may_cut": request.truncate is not False,
        "rules": {"truncation_side": "left"} if is_left else {},
    }


def _rerank_ask(request: TeiRerank) -> Ask:
    return rerank_ask(request.query, request.texts, **_options(request))


def _rerank_answer(request: TeiRerank, answer: Answer, request_id: str) -> list[TeiRank]:
    scores = scores_of(answer, raw=request.raw_scores)
    return [
        TeiRank(index=i, score=float(scores[i]), text=request.texts[i] if request.return_text else None)
        for i in ranked(answer)
    ]


def _predict_ask(request: TeiPredict) -> Ask:
    return Ask(
        pairs=[(check_query(query), passage) for query, passage in _pairs(request)],
        **_options(request),
    )


def _predict_answer(
    request: TeiPredict, answer: Answer, request_id: str
) -> list[TeiPrediction] | list[list[TeiPrediction]]:
    if not answer.is_complete:
        raise Failure("timeout", "not all pairs were scored in time, and this answer has no place to say which")
    scores = [TeiPrediction(score=float(score)) for score in scores_of(answer, raw=request.raw_scores)]
    return scores if isinstance(request.inputs[0], str) else [[score] for score in scores]


def _pairs(request: TeiPredict) -> list[list[str]]:
    """Return the pairs of `inputs`: [query, text] is one, and so is each list in a list."""
    pairs = [item for item in request.inputs if isinstance(item, list)]
    texts = [item for item in request.inputs if isinstance(item, str)]
    if len(texts) == 2 and not pairs:
        return [texts]
    if texts:
        raise Failure("invalid", "`inputs` has to be a pair [query, text], or a list of such pairs")
    return pairs


ENDPOINTS = (
    Endpoint(
        dialect=TEI,
        paths=("/rerank",),
        request=TeiRerank,
        response=list[TeiRank],
        ask=_rerank_ask,
        answer=_rerank_answer,
        summary="rank texts by how well they answer a query",
    ),
    Endpoint(
        dialect=TEI,
        paths=("/predict",),
        request=TeiPredict,
        response=list[TeiPrediction | list[TeiPrediction]],
        ask=_predict_ask,
        answer=_predict_answer,
        summary="score pairs of a query and a text",
    ),
)
