"""Errors and the list of models in OpenAI's form, which several dialects use."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from rankrt.server.dialects import Card
from rankrt.server.failures import Failure, Kind


class OpenAIErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    code: int
    param: str | None = None


class OpenAIError(msgspec.Struct, frozen=True, kw_only=True):
    """An error."""

    error: OpenAIErrorDetail


class OpenAIModel(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. vLLM adds its source, and the most tokens of a row."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "rankrt"
    parent: None = None


class OpenAIModels(msgspec.Struct, frozen=True, kw_only=True):
    """The models that are served."""

    data: list[OpenAIModel]
    object: Literal["list"] = "list"


def error_of(failure: Failure, status: int, types: Mapping[Kind, str], otherwise: str) -> OpenAIError:
    """Return the body for a failure; `types` are a dialect's words for its kinds."""
    kind = types.get(failure.kind, otherwise)
    return OpenAIError(error=OpenAIErrorDetail(message=failure.message, type=kind, code=status))


def models_of(cards: Sequence[Card]) -> OpenAIModels:
    """Return the list of models."""
    return OpenAIModels(
        data=[OpenAIModel(id=c.name, created=c.created, root=c.source, max_model_len=c.max_length) for c in cards]
    )
