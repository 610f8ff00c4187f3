"""Errors as OpenAI's interface has them, which vLLM, Infinity and llama.cpp answer."""

from collections.abc import Mapping

import msgspec

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


def error_of(failure: Failure, status: int, types: Mapping[Kind, str], otherwise: str) -> OpenAIError:
    """Return the body for a failure; `types` are a dialect's words for its kinds."""
    kind = types.get(failure.kind, otherwise)
    return OpenAIError(error=OpenAIErrorDetail(message=failure.message, type=kind, code=status))
