"""Text Embeddings Inference 1.9: `texts` in, a bare array out."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from rankrt.server.dialects import (
    BestOf,
    Count,
    Dialect,
    Endpoint,
    Flag,
    Request,
    common_of,
    is_set,
    rank,
    rerank_ask,
    scores_of,
)
from rankrt.server.dialects.fields import REFUSED
from rankrt.server.dialects.openai import models_of
from rankrt.server.dialects.texts import Query, Texts, check_query
from rankrt.server.evaluator import Answer, Ask
from rankrt.server.failures import Failure, Kind

Direction: TypeAlias = Literal["Left", "Right", "left", "right"]
Pair: TypeAlias = Annotated[list[str], msgspec.Meta(min_length=2, max_length=2)]
_PAIR = {"type": "array", "prefixItems": [{"type": "string", "pattern": r"\S"}, {"type": "string"}], "items": False}
_INPUTS: dict[str, Any] = {"anyOf": [{**_PAIR, "minItems": 2}, {"type": "array", "items": {**_PAIR, "minItems": 2}}]}


class _Options(Request, frozen=True, kw_only=True):
    """The common fields of /rerank and /predict; `truncate` is true by default."""

    truncate: Flag = None
    truncation_direction: Direction | None = None
    raw_scores: Flag = None
    model: str | None = None


class TeiRerank(BestOf, _Options, frozen=True, kw_only=True):
    """POST /rerank. TEI always answers all texts. litellm still sends `top_n`, and its callers expect so many."""

    query: Query
    texts: Texts
    return_text: Flag = None
    top_n: Count | None = None
    top_k: Count | None = None


class TeiRank(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance."""

    index: int
    score: float
    text: str | None = None


class TeiPredict(_Options, frozen=True, kw_only=True):
    """POST /predict: one pair, or several."""

    inputs: Annotated[list[str | Pair], msgspec.Meta(min_length=1, extra_json_schema=_INPUTS)]


class TeiPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """A score with the one label of a reranker."""

    score: float
    label: str = "LABEL_0"


class TeiTokenize(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: one text, or several. `prompt_name` is a field for sentence-transformers' models."""

    inputs: str | Texts
    add_special_tokens: Flag = None
    prompt_name: None = None
    model: str | None = None


class TeiToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token and its bytes in the text's UTF-8; a special token has none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TeiReranker(msgspec.Struct, frozen=True, kw_only=True):
    """The one label of a reranker."""

    id2label: dict[str, str] = msgspec.field(default_factory=lambda: {"0": "LABEL_0"})
    label2id: dict[str, int] = msgspec.field(default_factory=lambda: {"LABEL_0": 0})


class TeiModelType(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of the served model."""

    reranker: TeiReranker = msgspec.field(default_factory=TeiReranker)


class TeiInfo(msgspec.Struct, frozen=True, kw_only=True):
    """GET /info: the served model and the server's limits.

    `max_batch_tokens` are the tokens of one run. `max_concurrent_requests` is the most connections. `artifact` is the
    SHA-256 of the artifact's manifest.
    """

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    tokenization_workers: int
    version: str
    artifact: str
    model_type: TeiModelType = msgspec.field(default_factory=TeiModelType)
    max_batch_requests: int | None = None
    auto_truncate: bool = True
    sha: str | None = None
    docker_label: str | None = None


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
    statuses={"empty": 400, "score": 424, "too_many": 413},
    models=models_of,
    health=lambda: None,
)
_REFUSED = {
    **REFUSED,
    **dict.fromkeys(("normalize", "softmax", "activation", "use_activation"), "send `raw_scores`, true or false"),
    **dict.fromkeys(("return_documents", "documents"), "TEI's requests have `texts` and `return_text`"),
}


def _options(request: _Options) -> dict[str, Any]:
    is_left = request.truncation_direction in ("Left", "left")
    return {
        "model": request.model,
        "may_cut": is_set(request.truncate, otherwise=True),
        "rules": {"truncation_side": "left"} if is_left else {},
        **common_of(request),
    }


def _kind(request: _Options) -> Literal["logit", "sigmoid"]:
    return "logit" if is_set(request.raw_scores) else "sigmoid"


def _rerank_ask(request: TeiRerank) -> Ask:
    return rerank_ask(request.query, request.texts, **_options(request))


def _rerank_answer(request: TeiRerank, answer: Answer, request_id: str) -> list[TeiRank]:
    scores, echo = scores_of(answer, _kind(request)), is_set(request.return_text)
    return [
        TeiRank(index=i, score=float(scores[i]), text=request.texts[i] if echo else None)
        for i in rank(answer, request.n_best)
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
        raise Failure("timeout", "not all pairs were scored in time, and this answer cannot say which")
    scores = [TeiPrediction(score=float(score)) for score in scores_of(answer, _kind(request))]
    return scores if isinstance(request.inputs[0], str) else [[score] for score in scores]


def _pairs(request: TeiPredict) -> list[list[str]]:
    """Return the pairs of `inputs`: [query, text] is one, and so is each list in a list."""
    pairs = [item for item in request.inputs if isinstance(item, list)]
    texts = [item for item in request.inputs if isinstance(item, str)]
    if len(texts) == 2 and not pairs:
        return [texts]
    if texts:
        raise Failure("invalid", "expected `inputs` to be a pair [query, text], or a list of such pairs")
    return pairs


ENDPOINTS = (
    Endpoint(
        dialect=TEI,
        paths=("/rerank", "/invocations"),
        request=TeiRerank,
        response=list[TeiRank],
        ask=_rerank_ask,
        answer=_rerank_answer,
        kind=_kind,
        summary="rank texts by how well they answer a query",
        example={"query": "what is panda?", "texts": ["hi", "The giant panda is a bear."], "raw_scores": False},
        refused=_REFUSED,
    ),
    Endpoint(
        dialect=TEI,
        paths=("/predict",),
        request=TeiPredict,
        response=list[TeiPrediction | list[TeiPrediction]],
        ask=_predict_ask,
        answer=_predict_answer,
        kind=_kind,
        summary="score pairs of a query and a text",
        example={"inputs": [["what is panda?", "hi"], ["what is panda?", "The giant panda is a bear."]]},
        refused=_REFUSED,
    ),
)
