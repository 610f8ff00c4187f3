"""The reasons for which a request fails. A dialect turns them into its own words."""

from typing import Literal, TypeAlias

from rankrt.errors import DeviceError, InputError, RankrtError, ScoreError
from rankrt.server.scheduling.scheduler import QueueFull, Stopping, TooLate
from rankrt.server.workers.local import RunFailed, WorkerLost

Kind: TypeAlias = Literal[
    "syntax",  # the body is not JSON
    "invalid",  # it is JSON, and asks for something that cannot be done
    "empty",  # nothing to rank
    "too_many",  # more documents than one request may have
    "too_long",  # a text that may not be cut does not fit
    "body_too_large",
    "body_too_slow",
    "media_type",
    "unauthorized",
    "unknown_model",
    "not_found",  # no such path
    "overloaded",
    "timeout",
    "unavailable",  # not loaded yet, or stopping
    "score",  # the model returned NaN or infinity
    "internal",
]

# HTTP's own statuses. A dialect may choose others.
STATUSES: dict[Kind, int] = {
    "syntax": 400,
    "invalid": 422,
    "empty": 422,
    "too_many": 422,
    "too_long": 422,
    "body_too_large": 413,
    "body_too_slow": 408,
    "media_type": 415,
    "unauthorized": 401,
    "unknown_model": 404,
    "not_found": 404,
    "overloaded": 429,
    "timeout": 504,
    "unavailable": 503,
    "score": 500,
    "internal": 500,
}


class Failure(RankrtError):
    """A request that fails. The message is for the client and contains no text of the request."""

    def __init__(self, kind: Kind, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


def failure_of(error: RankrtError) -> Failure:
    """Return the failure that a client sees for an error of the runtime.

    It is a new one. One that was raised leads to the frame that keeps it, and so to the request's texts, in a circle.
    """
    match error:
        case Failure():
            return Failure(error.kind, error.message, retry_after_s=error.retry_after_s)
        case QueueFull():
            return Failure("overloaded", str(error), retry_after_s=error.retry_after_s)
        case TooLate():
            return Failure("timeout", str(error))
        case InputError() | DeviceError():
            return Failure("invalid", str(error))
        case ScoreError():
            return Failure("score", str(error))
        case Stopping():
            return Failure("unavailable", str(error), retry_after_s=5.0)
        case WorkerLost() | RunFailed():
            return Failure("unavailable", f"scoring failed: {error}", retry_after_s=1.0)
        case _:
            return Failure("internal", str(error))
