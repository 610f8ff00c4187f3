"""What the wire means: one file a dialect, each with its requests, its answers and its errors to the letter.

A dialect knows the shapes of JSON and nothing of HTTP, queues or models: bytes become an Ask, an Answer becomes a
Struct, a Failure becomes a Struct and a status.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np

from rankrt.arrays import Float32Array
from rankrt.reranker import sigmoid
from rankrt.server.engine import Answer, Ask
from rankrt.server.failures import STATUSES, Failure, Kind

# A regular expression that every JSON schema understands; the check itself is `check_query`.
Query: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"\S"})]
Milliseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
Priority: TypeAlias = Annotated[int, msgspec.Meta(ge=-1_000_000, le=1_000_000)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
TopN: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class Text(msgspec.Struct, frozen=True):
    """A text in an object, as several dialects allow."""

    text: str


class QueryText(msgspec.Struct, frozen=True):
    """A query in an object."""

    text: Query


Document: TypeAlias = str | Text
QueryDocument: TypeAlias = Query | QueryText
Documents: TypeAlias = Annotated[list[Document], msgspec.Meta(extra_json_schema={"minItems": 1})]
Texts: TypeAlias = Annotated[list[str], msgspec.Meta(extra_json_schema={"minItems": 1})]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What every dialect understands here, besides its own fields.

    timeout_ms       answer by then, or with 504; never later than the server's own limit
    partial_results  answer with the documents that were scored by then, instead
    """

    timeout_ms: Milliseconds | None = None
    partial_results: bool = False


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all rows, special ones counted; a query counts once for each document."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A dialect's errors: the body for a failure, and the statuses that are not HTTP's own choice."""

    name: str
    error: Callable[[Failure, int], msgspec.Struct]
    error_type: type[msgspec.Struct]
    statuses: Mapping[Kind, int] = field(default_factory=dict)

    def status(self, failure: Failure) -> int:
        """Return the HTTP status for a failure."""
        return self.statuses.get(failure.kind, STATUSES[failure.kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One kind of request.

    paths     where it is, below the dialect's own prefix
    request   the Struct of its body
    ask       what such a body wants; raises InputError or a Failure
    answer    the body that answers it, with an id for dialects that have one
    response  the type of that body
    """

    dialect: Dialect
    paths: Sequence[str]
    request: type[msgspec.Struct]
    response: Any
    ask: Callable[[Any], Ask]
    answer: Callable[[Any, Answer, str], Any]
    summary: str


def check_query(query: str) -> str:
    """Return a query that is not empty. Raises a Failure for one that is."""
    if not query.strip():
        raise Failure("invalid", "the query is empty: there is nothing to rank by")
    return query


def texts_of(documents: Sequence[Document]) -> list[str]:
    """Return the texts of documents. Raises a Failure if there are none."""
    if not documents:
        raise Failure("empty", "there are no documents to rank")
    return [document if isinstance(document, str) else document.text for document in documents]


def rerank_ask(query: str | QueryText, documents: Sequence[Document], **options: Any) -> Ask:
    """Return the Ask for one query and many documents; `options` are its other fields."""
    text = check_query(query if isinstance(query, str) else query.text)
    return Ask(pairs=[(text, document) for document in texts_of(documents)], **options)


def deadline_of(request: Request) -> dict[str, Any]:
    """Return what a request says about its deadline, as fields of Ask."""
    return {"timeout_ms": request.timeout_ms, "is_partial": request.partial_results}


def scores_of(answer: Answer, *, raw: bool) -> Float32Array:
    """Return logits, or their sigmoid."""
    return answer.logits if raw else sigmoid(answer.logits)


def ranked(answer: Answer, top_n: int | None = None) -> list[int]:
    """Return the documents that were scored, best first; equal ones in the order in which they were given."""
    order = np.argsort(-answer.logits, kind="stable")
    return [int(i) for i in order[answer.is_scored[order]][:top_n]]


def usage_of(answer: Answer) -> Usage:
    """Return how many tokens a request was."""
    return Usage(prompt_tokens=answer.n_tokens, total_tokens=answer.n_tokens)
