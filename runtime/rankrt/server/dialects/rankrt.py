"""rankrt's own dialect: it answers all that is known about a document, for the playground and other programs."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from rankrt.arrays import Int64Array
from rankrt.scale import Scale, ScoreKind, check_threshold, kind_of, reaches
from rankrt.server.dialects import (
    Card,
    Dialect,
    Endpoint,
    Flag,
    Limited,
    Priority,
    Some,
    common_of,
    is_set,
    rank,
    rerank_ask,
    shortest,
)
from rankrt.server.dialects.fields import REFUSED
from rankrt.server.dialects.openai import OpenAIModel
from rankrt.server.dialects.texts import Documents, QueryDocument, texts_of
from rankrt.server.evaluator import Answer, Ask
from rankrt.text.options import LongDocuments, Span


class Rerank(Limited, frozen=True, kw_only=True):
    """POST /rankrt/rerank. `max_length` and similar fields are those of `rankrt.Rules`.

    `cutoff_layer` is the layer of a layerwise model whose score is wanted. Scores are logits, their sigmoid with
    `normalize`, or probabilities with `calibrated`, if the artifact has a calibration. Documents whose score is below
    `score_threshold`, a number of that kind, are left out of the answer. `return_spans` asks which part of each
    document was read.
    """

    query: QueryDocument
    documents: Documents
    model: str | None = None
    normalize: Flag = None
    calibrated: Flag = None
    score_threshold: float | None = None
    return_documents: Flag = None
    return_spans: Flag = None
    long_documents: LongDocuments | None = None
    max_length: Some | None = None
    query_max_length: Some | None = None
    passage_max_length: Some | None = None
    truncation_side: Literal["left", "right"] | None = None
    cutoff_layer: Some | None = None
    priority: Priority | None = None


class Ranked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document in the order of relevance; `score_kind` of the ranking says what its score is.

    `read` and `span` are the first character and the one after the last, counted from 0 in Unicode code points. The
    model has read the characters of `read`, in one window or several. `span` is the window that scored best, if the
    document was read in windows.
    """

    index: int
    score: float
    n_tokens: int
    truncated: bool = msgspec.field(default=False)
    read: tuple[int, int] | None = None
    span: tuple[int, int] | None = None
    document: str | None = None


class Milliseconds(msgspec.Struct, frozen=True, kw_only=True):
    """The time of each stage."""

    tokenization: float
    queue: float
    inference: float
    total: float


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents in the order of relevance. `is_partial` is true if the deadline came first.

    `score_kind` is `logit`, `sigmoid` (of the logit, from 0 to 1), or `probability` (by the artifact's calibration).
    """

    id: str
    model: str
    variant: str
    artifact: str
    score_kind: ScoreKind
    results: list[Ranked]
    n_documents: int
    n_tokens: int
    n_cached_tokens: int
    query_truncated: bool
    is_partial: bool
    milliseconds: Milliseconds


class RankrtModel(OpenAIModel, frozen=True, kw_only=True):
    """A served model. `max_model_len` is the length of a row by default, `longest` the most that a request may ask for.

    `calibrated` says whether requests may ask for probabilities.
    """

    precision: str
    device: str
    longest: int
    long_documents: LongDocuments
    calibrated: bool


class RankrtModels(msgspec.Struct, frozen=True, kw_only=True):
    """The models that are served, in OpenAI's form with what the playground needs to know besides."""

    data: list[RankrtModel]
    object: Literal["list"] = "list"


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    kind: str
    message: str


def _models(cards: Sequence[Card]) -> RankrtModels:
    return RankrtModels(
        data=[
            RankrtModel(
                id=card.name,
                created=card.created,
                root=card.source,
                max_model_len=card.max_length,
                precision=card.precision,
                device=card.device,
                longest=card.longest,
                long_documents=card.long_documents,
                calibrated=card.is_calibrated,
            )
            for card in cards
        ]
    )


RANKRT = Dialect(
    name="rankrt",
    error=lambda failure, status: Error(kind=failure.kind, message=failure.message),
    error_type=Error,
    is_strict=True,
    models=_models,
)


def _kind(request: Rerank) -> ScoreKind:
    return kind_of(normalize=is_set(request.normalize), calibrated=is_set(request.calibrated))


def _ask(request: Rerank) -> Ask:
    check_threshold(request.score_threshold, _kind(request))
    wanted: dict[str, Any] = {
        "max_length": request.max_length,
        "query_max_length": request.query_max_length,
        "passage_max_length": request.passage_max_length,
        "long_documents": request.long_documents,
        "truncation_side": request.truncation_side if request.truncation_side == "left" else None,
    }
    return rerank_ask(
        request.query,
        request.documents,
        model=request.model,
        priority=request.priority or 0,
        cutoff_layer=request.cutoff_layer,
        is_calibrated=is_set(request.calibrated),
        wants_spans=is_set(request.return_spans),
        rules={name: value for name, value in wanted.items() if value is not None},
        **common_of(request),
    )


def _answer(request: Rerank, answer: Answer, request_id: str) -> Ranking:
    scale = answer.scale if is_set(request.calibrated) else Scale(kind=_kind(request))
    scores, texts = scale.scores(answer.logits), texts_of(request.documents)
    is_kept, told = reaches(scores, request.score_threshold), shortest(scores)
    timings, echo = answer.timings, is_set(request.return_documents)
    return Ranking(
        id=request_id,
        model=answer.model.name,
        variant=answer.model.variant.name,
        artifact=answer.model.artifact.identity,
        score_kind=scale.kind,
        results=[
            Ranked(
                index=i,
                score=float(told[i]),
                n_tokens=int(answer.pair_tokens[i]),
                truncated=bool(answer.truncated[i]),
                read=_span(answer.read, i),
                span=_span(answer.best, i),
                document=texts[i] if echo else None,
            )
            for i in rank(answer, request.n_best)
            if is_kept[i]
        ],
        n_documents=len(texts),
        n_tokens=answer.n_tokens,
        n_cached_tokens=answer.n_cached,
        query_truncated=bool(answer.query_truncated.any()),
        is_partial=not answer.is_complete,
        milliseconds=Milliseconds(
            tokenization=1000 * timings.tokenization,
            queue=1000 * timings.queue,
            inference=1000 * timings.inference,
            total=1000 * timings.total,
        ),
    )


def _span(spans: Int64Array | None, index: int) -> Span | None:
    return None if spans is None else (int(spans[index, 0]), int(spans[index, 1]))


ENDPOINTS = (
    Endpoint(
        dialect=RANKRT,
        paths=("/rerank",),
        request=Rerank,
        response=Ranking,
        ask=_ask,
        answer=_answer,
        kind=_kind,
        summary="rank documents, and report everything that is known about them",
        example={"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."], "normalize": True},
        harmless=(),
        refused={**REFUSED, **dict.fromkeys(("raw_scores", "use_activation"), "send `normalize`, true or false")},
    ),
)
