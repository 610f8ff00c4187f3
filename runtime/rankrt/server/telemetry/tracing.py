"""Spans of requests for OpenTelemetry, below the client's span (W3C traceparent). Needs the extra otel."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rankrt.errors import MissingExtra
from rankrt.server.evaluator import Answer


class Tracer(Protocol):
    """Notes requests that were answered or that failed."""

    def note(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any], answer: Answer | None) -> None:
        """Note a request that ends now."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class NoTracer:
    """Notes nothing."""

    def note(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any], answer: Answer | None) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class OtlpTracer:
    """Sends spans by OTLP over HTTP to a collector."""

    def __init__(self, endpoint: str, exporter: Any = None) -> None:
        """Take an endpoint. `exporter` replaces the one that sends there. Raises MissingExtra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise MissingExtra(f"traces need {error.name}: pip install 'rankrt[cpu,server,otel]'") from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "rankrt"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("rankrt.server")

    def note(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any], answer: Answer | None) -> None:
        """Note a request that ends now. One that was answered has a span for each stage."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.status import Status, StatusCode

        end = time.time_ns()
        start = end - int(attributes["seconds"] * 1e9)
        known = {name: value for name, value in attributes.items() if value is not None}
        span = self._tracer.start_span(name, context=extract(dict(headers)), start_time=start, attributes=known)
        if answer is None and attributes["status"] >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if answer is not None:
            inside, begin = set_span_in_context(span), start
            for stage in ("tokenization", "queue", "inference"):
                stop = min(end, begin + int(getattr(answer.timings, stage) * 1e9))
                self._tracer.start_span(stage, context=inside, start_time=begin).end(stop)
                begin = stop
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
