"""What a request may be, and how much of all requests may be here at once. Every limit is stated where it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rankrt.server.failures import Failure
from rankrt.server.scheduling.queue import LEAST_ROW_TOKENS, ROW_MEMORY

# What a body takes of the server's memory while it is worked on, in bytes a byte: 7.5 were measured for text with an
# emoji in it (Python keeps four bytes a character), 5 for many small documents, 3 to 5 for others.
MEMORY_A_BODY_BYTE = 8
# A string, list or object takes 160 bytes of memory beside its text, which counts as so many bytes of a body.
BYTES_A_VALUE = 160 // MEMORY_A_BODY_BYTE
# No document has so many parts and fields. A body of "a", that is not refused would be 39 bytes of memory a byte.
_MOST_VALUES_A_DOCUMENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The server's limits.

    max_body_bytes     of one request
    max_documents      pairs of one request
    max_queue_tokens   that were admitted and are not scored, of all requests together
    max_inflight_bytes of all bodies that are read or worked on
    max_connections    open at once; beyond, only health and readiness are answered
    max_header_bytes   of a request's first line and headers
    timeout_ms         until a request is answered, if it names no deadline that is earlier
    header_timeout_s   until a header has to be complete, from the connection or from its first byte
    body_timeout_s     until a body has to be complete, or a client has to read on
    """

    max_body_bytes: int = 32 << 20
    max_documents: int = 10_000
    max_queue_tokens: int = 8 << 20  # 10,000 documents of 512 tokens are 5 million
    max_inflight_bytes: int = 128 << 20
    max_connections: int = 1024
    max_header_bytes: int = 16 << 10
    timeout_ms: int = 60_000
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0

    @property
    def most_memory(self) -> int:
        """The bytes of the server's memory that all requests together take at most."""
        rows = self.max_queue_tokens // LEAST_ROW_TOKENS
        return MEMORY_A_BODY_BYTE * self.max_inflight_bytes + 4 * self.max_queue_tokens + ROW_MEMORY * rows

    @property
    def longest_run_s(self) -> float:
        """Seconds after which a run is taken for hung: twice what any request may wait for it, and at least a minute.

        All that asked for the run have their answer or refusal by then. On one slow thread the longest row that there
        is, 8,192 tokens of 568 M parameters, takes minutes; a server of such rows needs a longer timeout_ms anyway.
        """
        return max(60.0, 2 * self.timeout_ms / 1000)

    def deadline_s(self, asked_ms: int | None) -> float:
        """Return how many seconds a request has that asks for so many milliseconds: never more than the server's."""
        return min(self.timeout_ms, asked_ms or self.timeout_ms) / 1000


class InFlight:
    """The bytes of all bodies that are here. One event loop uses it."""

    def __init__(self, limits: Limits) -> None:
        self.n_bytes = 0
        self.n_requests = 0
        self.limits = limits

    def check_body(self, n_bytes: int) -> None:
        """Raise a Failure if one body is larger than it may be."""
        if n_bytes > self.limits.max_body_bytes:
            raise Failure("body_too_large", f"the body has more than {self.limits.max_body_bytes} bytes, the most here")

    @contextmanager
    def request(self) -> Iterator["Body"]:
        """Account for a request as long as it is worked on."""
        body = Body(self)
        self.n_requests += 1
        try:
            yield body
        finally:
            self.n_requests -= 1
            self.n_bytes -= body.n_bytes

    def add(self, n_bytes: int) -> None:
        """Raise a Failure if so many more bytes do not fit."""
        if self.n_bytes + n_bytes > self.limits.max_inflight_bytes:
            raise Failure(
                "overloaded",
                f"requests of {self.n_bytes} bytes are worked on, at most {self.limits.max_inflight_bytes} may be",
                retry_after_s=1.0,
            )
        self.n_bytes += n_bytes


class Body:
    """What one body counts as: its bytes as they come, then its values."""

    def __init__(self, in_flight: InFlight) -> None:
        self.n_bytes = 0
        self._in_flight = in_flight

    def check(self, n_bytes: int) -> None:
        """Raise a Failure if a body of so many bytes is too large."""
        self._in_flight.check_body(n_bytes)

    def add(self, n_bytes: int) -> None:
        """Account for more bytes. Raises a Failure if they are too many, for one request or for all."""
        self._in_flight.check_body(self.n_bytes + n_bytes)
        self._in_flight.add(n_bytes)
        self.n_bytes += n_bytes

    def add_values(self, n_values: int) -> None:
        """Account for the strings, lists and objects of a body, before they take memory. Raises a Failure as `add`."""
        limits = self._in_flight.limits
        if n_values > (most := _MOST_VALUES_A_DOCUMENT * limits.max_documents):
            raise Failure("invalid", f"the body has {n_values} strings, lists and objects; at most {most} may be")
        n_bytes = BYTES_A_VALUE * n_values
        self._in_flight.add(n_bytes)
        self.n_bytes += n_bytes
