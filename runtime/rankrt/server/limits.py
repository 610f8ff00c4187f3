"""The limits of one request, and of all requests together. Every error states its limit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rankrt.server.failures import Failure
from rankrt.server.scheduling.queue import LEAST_ROW_TOKENS, ROW_MEMORY

# The server's memory for each byte of a body in flight. 7.5 bytes were measured for text with an emoji (Python keeps
# four bytes a character), 5 for many small documents, 3 to 5 for others.
MEMORY_A_BODY_BYTE = 8
# A string, list or object takes 160 bytes of memory beside its text. It counts as so many bytes of a body.
BYTES_A_VALUE = 160 // MEMORY_A_BODY_BYTE
# No document has so many parts and fields. Otherwise a body of "a","a",... would take 39 bytes of memory a byte.
_MOST_VALUES_A_DOCUMENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The server's limits.

    max_body_bytes      of one request
    max_documents       pairs of one request
    max_queue_tokens    of all requests together, admitted and not yet scored
    max_inflight_bytes  of all bodies in flight
    max_connections     open at once; connections beyond get health and readiness only
    max_header_bytes    of a request's first line and headers
    timeout_ms          until a request is answered, unless its own deadline is earlier
    header_timeout_s    until a header is complete, from the connection or from its first byte
    body_timeout_s      until a body is complete, or a client reads on
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
        """The most bytes of the server's memory that all requests together take."""
        rows = self.max_queue_tokens // LEAST_ROW_TOKENS
        return MEMORY_A_BODY_BYTE * self.max_inflight_bytes + 4 * self.max_queue_tokens + ROW_MEMORY * rows

    @property
    def longest_run_s(self) -> float:
        """Seconds after which a run counts as hung: twice the longest wait of a request, and at least a minute.

        By then all its requests are answered or refused. On one slow thread the longest row, 8,192 tokens of 568 M
        parameters, takes minutes. A server of such rows needs a longer timeout_ms anyway.
        """
        return max(60.0, 2 * self.timeout_ms / 1000)

    def deadline_s(self, asked_ms: int | None) -> float:
        """Return the seconds of a request that asks for so many milliseconds, at most the server's."""
        return min(self.timeout_ms, asked_ms or self.timeout_ms) / 1000


class InFlight:
    """The bytes of all bodies in flight. One event loop uses it."""

    def __init__(self, limits: Limits) -> None:
        self.n_bytes = 0
        self.n_requests = 0
        self.limits = limits

    def check_body(self, n_bytes: int) -> None:
        """Raise a Failure if one body is too large."""
        if n_bytes > self.limits.max_body_bytes:
            raise Failure("body_too_large", f"the body is too large (limit {self.limits.max_body_bytes} bytes)")

    @contextmanager
    def request(self) -> Iterator["Body"]:
        """Account for a request while it is in flight."""
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
                f"server busy: {self.n_bytes} bytes of requests in flight (limit {self.limits.max_inflight_bytes});"
                " try again",
                retry_after_s=1.0,
            )
        self.n_bytes += n_bytes


class Body:
    """The account of one body: its bytes as they arrive, then its values."""

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
            raise Failure("invalid", f"too many strings, lists and objects in the body: {n_values} (limit {most})")
        n_bytes = BYTES_A_VALUE * n_values
        self._in_flight.add(n_bytes)
        self.n_bytes += n_bytes
