"""The dialects: one file each, with the exact requests, answers and errors of one API.

A dialect knows the shapes of JSON, but neither HTTP nor queues nor models. Bytes become an Ask. An Answer becomes a
Struct. A Failure becomes a Struct and a status. The other files are:

    fields    which fields of a body are obeyed, ignored or refused
    texts     queries and documents as clients write them
    openai    errors and models as several dialects have them
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np

from rankrt.arrays import Float32Array, Float64Array
from rankrt.scale import Scale, ScoreKind
from rankrt.server.dialects import fields
from rankrt.server.dialects.texts import Document, QueryDocument, check_query, texts_of
from rankrt.server.evaluator import Answer, Ask
from rankrt.server.failures import STATUSES, Failure, Kind
from rankrt.text.options import LongDocuments

Milliseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
Priority: TypeAlias = Annotated[int, msgspec.Meta(ge=-1_000_000, le=1_000_000)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Some: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
# RAGFlow writes booleans as text, and the servers of its clients accept them.
Flag: TypeAlias = bool | Literal["true", "false", "True", "False"] | None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every dialect has here, besides its own.

    timeout_ms       the deadline, at most the server's own limit; after it the answer is 504
    partial_results  whether the documents that were scored by then are the answer instead
    instruction      what the model is told to look for, if it was trained with a place for that; vLLM and litellm call
                     it so, SGLang and DashScope call it `instruct`
    prompt_name      the name of such a text that the checkpoint brought; sentence-transformers calls it so
    """

    timeout_ms: Milliseconds | None = None
    partial_results: bool | None = None
    instruction: str | None = None
    instruct: str | None = None
    prompt_name: str | None = None


class BestOf:
    """The common part of requests for the best documents. `top_k` is another name for `top_n`; 0 and null are all."""

    __slots__ = ()
    top_n: int | None
    top_k: int | None

    def __post_init__(self) -> None:
        if self.top_n and self.top_k and self.top_n != self.top_k:
            raise ValueError(f"`top_n` is {self.top_n} and `top_k` is {self.top_k}; send one of them")

    @property
    def n_best(self) -> int | None:
        """How many documents the answer has; None is all."""
        return self.top_n or self.top_k or None


class Limited(BestOf, Request, frozen=True, kw_only=True):
    """A request for the best documents."""

    top_n: Count | None = None
    top_k: Count | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all rows, with special ones; a query counts once for each document."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Facts about a served model that a dialect may tell.

    max_length        the most tokens of a row, unless a request says otherwise
    longest           the most tokens of a row that a request may ask for
    long_documents    what happens to documents that do not fit
    is_calibrated     whether its scores can be told as probabilities
    created           seconds since 1970 when it was loaded
    n_waiting         requests in flight
    queue_tokens      tokens that wait to be scored
    max_queue_tokens  the most tokens that may wait
    run_tokens        tokens of one run
    """

    name: str
    source: str
    revision: str | None
    precision: str
    device: str
    max_length: int
    longest: int
    long_documents: LongDocuments
    is_calibrated: bool
    created: int
    n_waiting: int
    queue_tokens: int
    max_queue_tokens: int
    run_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A dialect's errors, and its pages about the server.

    error         the body for a failure
    error_type    the type of that body
    statuses      the statuses that differ from HTTP's own
    is_strict     whether unknown fields are refused
    models_paths  the paths of the list of models, below the dialect's prefix
    models        the body of that list; None if the dialect has none
    health        the body that says that the server is ready; None if the dialect has none
    """

    name: str
    error: Callable[[Failure, int], msgspec.Struct]
    error_type: type[msgspec.Struct]
    statuses: Mapping[Kind, int] = field(default_factory=dict)
    is_strict: bool = False
    models_paths: Sequence[str] = ("/v1/models",)
    models: Callable[[Sequence[Card]], Any] | None = None
    health: Callable[[], Any] | None = None

    def status(self, failure: Failure) -> int:
        """Return the HTTP status for a failure."""
        return self.statuses.get(failure.kind, STATUSES[failure.kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One kind of request.

    paths     its paths, below the dialect's own prefix
    request   the Struct of its body
    ask       turns such a body into an Ask; raises InputError or a Failure
    answer    turns the answer into its body, with an id for dialects that have one
    response  the type of that body
    example   a body to try
    kind      returns what the scores of the answer to such a body are; of most APIs the sigmoid of the logit
    harmless  fields that are ignored silently
    refused   fields that are refused, each with the reason or the remedy
    """

    dialect: Dialect
    paths: Sequence[str]
    request: type[msgspec.Struct]
    response: Any
    ask: Callable[[Any], Ask]
    answer: Callable[[Any, Answer, str], Any]
    summary: str
    example: Mapping[str, Any]
    kind: Callable[[Any], ScoreKind] = lambda request: "sigmoid"
    harmless: Collection[str] = fields.HARMLESS
    refused: Mapping[str, str] = field(default_factory=lambda: fields.REFUSED)

    def check(self, given: fields.Given) -> tuple[str, ...]:
        """Return the fields of a body that have no meaning here. Raises a Failure for a field to refuse."""
        known, is_strict = fields.names_of(self.request), self.dialect.is_strict
        return fields.check(given, known, is_strict=is_strict, harmless=self.harmless, refused=self.refused)

    @property
    def refused_names(self) -> list[str]:
        """The names of fields that this endpoint refuses, without those that are only misspelled."""
        known = fields.names_of(self.request)
        return sorted({*self.refused, *fields.misnames_of(known)} - known)


def is_set(flag: Flag, *, otherwise: bool = False) -> bool:
    """Return the value of a flag, or `otherwise` for null."""
    return otherwise if flag is None else flag in (True, "true", "True")


def rerank_ask(query: QueryDocument, documents: Sequence[Document], **options: Any) -> Ask:
    """Return the Ask for one query and many documents; `options` are its other fields."""
    text = check_query(query)
    return Ask(pairs=[(text, document) for document in texts_of(documents)], **options)


def common_of(request: Request) -> dict[str, Any]:
    """Return the fields that all dialects have, as fields of Ask."""
    given = {name: text for name in ("instruction", "instruct", "prompt_name") if (text := getattr(request, name))}
    if len(set(given.values())) > 1 or ("prompt_name" in given and len(given) > 1):
        raise Failure("invalid", f"{' and '.join(f'`{name}`' for name in given)} are both given; send one of them")
    return {
        "timeout_ms": request.timeout_ms,
        "is_partial": bool(request.partial_results),
        "instruction": request.instruction or request.instruct or None,
        "prompt_name": request.prompt_name or None,
    }


def scores_of(answer: Answer, kind: Literal["logit", "sigmoid"]) -> Float64Array:
    """Return logits, or their sigmoid, in their shortest form."""
    return shortest(Scale(kind=kind).scores(answer.logits))


def shortest(scores: Float32Array) -> Float64Array:
    """Return scores as the doubles with the fewest digits that give the same float32.

    Otherwise JSON writes a float32 with the digits of a double: 0.12345670163631439 for 0.1234567.
    """
    return scores.astype(np.str_).astype(np.float64)


def rank(answer: Answer, n_best: int | None = None) -> list[int]:
    """Return the scored documents, best first; equal ones in the order of the request."""
    order = np.argsort(-answer.logits, kind="stable")
    return [int(i) for i in order[answer.is_scored[order]][:n_best]]


def usage_of(answer: Answer) -> Usage:
    """Return the tokens of a request."""
    return Usage(prompt_tokens=answer.n_tokens, total_tokens=answer.n_tokens)
