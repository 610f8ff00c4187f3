"""The ASGI application: routes, bodies, headers and errors around the evaluator."""

import asyncio
import contextlib
import logging
import math
import re
import signal
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rankrt import __version__
from rankrt.errors import RankrtError
from rankrt.server import tokens
from rankrt.server.dialects import Card, Dialect, Endpoint, fields
from rankrt.server.dialects.jina import JINA, JinaRerank
from rankrt.server.dialects.tei import TEI, TeiInfo, TeiTokenize
from rankrt.server.dialects.vllm import VLLM
from rankrt.server.evaluator import Answer, Ask
from rankrt.server.failures import STATUSES, Failure, failure_of
from rankrt.server.http import bodies, openapi, pages
from rankrt.server.http.connections import IS_SPARE
from rankrt.server.http.routes import BARE, DIALECTS, advice_for, choose, dialect_of, prefixed
from rankrt.server.limits import Body
from rankrt.server.models import Model
from rankrt.server.service import Service
from rankrt.server.telemetry.metrics import CONTENT_TYPE

T = TypeVar("T")

# Decoding a larger body delays the other requests of the loop: 256 KB take 1 ms.
_DECODE_ELSEWHERE_BYTES = 256 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# A client may read scores before it knows the model, so each answer says what they are.
_SCORE_KIND = "x-rankrt-score-kind"
# nginx's status for a client that has left. It is only logged and counted.
_CLIENT_LEFT = 499

# Refusals that come before the whole body was read.
_BODY_UNREAD = ("body_too_large", "media_type", "unauthorized")

_logger = logging.getLogger("rankrt.server.requests")


@dataclass(slots=True, kw_only=True)
class _Exchange:
    """One request with the chunks of its body, and the facts that are logged and counted of it."""

    request: Request
    chunks: AsyncIterator[bytes]
    id: str
    started: float
    dialect: Dialect
    n_documents: int | None = None
    answer: Answer | None = None
    unknown_fields: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class App:
    """The routes of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._openapi = msgspec.json.encode(openapi.describe(needs_key=len(service.settings.keys) > 0))

    def starlette(self) -> Starlette:
        """Return the application."""
        origins = list(self._service.settings.cors_origins)
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
        return Starlette(
            routes=[*self._rerank_routes(), *self._other_routes()],
            middleware=[cors] if origins else [],
            exception_handlers={HTTPException: _http_error},
            lifespan=self._lifespan,
        )

    def _rerank_routes(self) -> list[Route]:
        paths: dict[str, Sequence[Endpoint]] = {path: (endpoint,) for path, endpoint in prefixed().items()}
        paths |= BARE
        routes = [Route(path, self._rerank_route(endpoints), methods=["POST"]) for path, endpoints in paths.items()]
        return [Route("/v1/rerank/stream", self._stream, methods=["POST"]), *routes]

    def _other_routes(self) -> list[Route]:
        documentation = pages.documentation(msgspec.json.decode(self._openapi))
        return [
            *(Route(path, _page_route(page), methods=["GET"]) for path, page in pages.playground().items()),
            Route("/docs", _page_route(documentation), methods=["GET"]),
            Route("/openapi.json", self._get_openapi, methods=["GET"]),
            Route("/health", self._get_health, methods=["GET"]),
            Route("/ping", self._get_health, methods=["GET"]),
            Route("/ready", self._get_ready, methods=["GET"]),
            Route("/metrics", self._get_metrics, methods=["GET"]),
            *(Route(path, self._get_info, methods=["GET"]) for path in ("/info", "/tei/info")),
            *(Route(path, self._tokenize, methods=["POST"]) for path in ("/tokenize", "/tei/tokenize")),
            *(Route(path, self._models_route(VLLM), methods=["GET"]) for path in openapi.MODELS_PATHS),
            *self._open_inference_routes(),
            *self._dialect_routes(),
        ]

    def _open_inference_routes(self) -> list[Route]:
        """Return the health paths of the Open Inference Protocol (v2), which KServe asks for."""
        return [
            Route("/v2/health/live", self._get_live, methods=["GET"]),
            Route("/v2/health/ready", self._get_v2_ready, methods=["GET"]),
            Route("/v2/models/{name}/ready", self._get_model_ready, methods=["GET"]),
        ]

    def _dialect_routes(self) -> list[Route]:
        """Return the pages about the server below each dialect's prefix."""
        models = [
            Route(f"/{dialect.name}{path}", self._models_route(dialect), methods=["GET"])
            for dialect in DIALECTS
            for path in dialect.models_paths
            if dialect.models is not None
        ]
        health = [
            Route(f"/{dialect.name}/health", self._health_route(dialect), methods=["GET"])
            for dialect in DIALECTS
            if dialect.health is not None
        ]
        return [*models, *health]

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        self._service.start()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        try:
            yield
        finally:
            await self._service.close()

    def _rerank_route(self, endpoints: Sequence[Endpoint]) -> Any:
        async def rerank(request: Request) -> Response:
            exchange = _exchange(request, endpoints[0].dialect)
            return await self._respond(exchange, self._rerank(exchange, endpoints))

        return rerank

    async def _rerank(self, exchange: _Exchange, endpoints: Sequence[Endpoint]) -> Response:
        request = exchange.request
        self._check_key(request)
        with self._service.request() as body:
            endpoint, decoded = await self._decode(exchange, body, await self._body(exchange, body), endpoints)
            ask: Ask = endpoint.ask(decoded)
            exchange.n_documents = len(ask.pairs)
            answer = await _unless_client_leaves(request, self._service.evaluator.evaluate(ask))
            exchange.answer = answer
            encoded = msgspec.json.encode(endpoint.answer(decoded, answer, exchange.id))
            headers = _answer_headers(exchange, answer) | {_SCORE_KIND: endpoint.kind(decoded)}
            return Response(encoded, media_type="application/json", headers=headers)

    async def _stream(self, request: Request) -> Response:
        exchange = _exchange(request, JINA)
        return await self._respond(exchange, self._begin_stream(exchange))

    async def _begin_stream(self, exchange: _Exchange) -> Response:
        (endpoint,) = [candidate for candidate in BARE["/v1/rerank"] if candidate.dialect is JINA]
        request = exchange.request
        self._check_key(request)
        async with contextlib.AsyncExitStack() as stack:
            body = stack.enter_context(self._service.request())
            _, decoded = await self._decode(exchange, body, await self._body(exchange, body), (endpoint,))
            ask: Ask = endpoint.ask(decoded)
            exchange.n_documents = len(ask.pairs)
            progress = await stack.enter_async_context(contextlib.aclosing(self._service.evaluator.stream(ask)))
            # Refusals come before the first byte of a stream, which says 200.
            first = await anext(progress)
            events = self._events(exchange, endpoint, decoded, first, progress)
            return _EventStream(exchange, events, stack.pop_all(), {_SCORE_KIND: endpoint.kind(decoded)})

    async def _events(
        self,
        exchange: _Exchange,
        endpoint: Endpoint,
        decoded: JinaRerank,
        first: tuple[Any, Answer],
        rest: AsyncIterator[tuple[Any, Answer]],
    ) -> AsyncGenerator[bytes]:
        kind: str | None = "client_left"
        status = _CLIENT_LEFT
        try:
            async for new, answer in _chain(first, rest):
                ranking = endpoint.answer(decoded, answer, exchange.id)
                hits = {hit.index: hit for hit in ranking.results} if len(new) else {}
                for index in new:
                    if int(index) in hits:
                        yield _event("hit", hits[int(index)])
            yield _event("done", ranking)
            kind, status, exchange.answer = None, 200, answer
            self._service.metrics.answered(exchange.dialect.name, answer)
        except RankrtError as error:
            failure = failure_of(error)
            kind, status = failure.kind, exchange.dialect.status(failure)
            self._service.metrics.failed(exchange.dialect.name, failure.kind, status)
            yield _event("error", exchange.dialect.error(failure, status))
        finally:
            self._note(exchange, status, kind)

    async def _respond(self, exchange: _Exchange, work: Coroutine[Any, Any, Response]) -> Response:
        """Return the response, or the dialect's body for an error; note either."""
        kind: str | None = None
        try:
            with self._service.answering():
                response = await work
        except asyncio.CancelledError:
            if not self._service.is_stopping:
                raise
            failure = Failure("unavailable", "the server is going down", retry_after_s=5.0)
            kind, response = failure.kind, self._refusal(exchange, failure)
        except ClientDisconnect:
            kind, response = "client_left", Response(status_code=_CLIENT_LEFT)
            self._service.metrics.failed(exchange.dialect.name, kind, _CLIENT_LEFT)
        except RankrtError as error:
            failure = failure_of(error)
            kind, response = failure.kind, self._refusal(exchange, failure)
            if failure.kind in _BODY_UNREAD or _is_spare(exchange.request):
                await bodies.discard(exchange.chunks, exchange.request.headers)
        except Exception:
            _logger.exception("internal error", extra={"request_id": exchange.id})
            failure = Failure("internal", f"internal error; the server's log has the cause for request {exchange.id}")
            kind, response = failure.kind, self._refusal(exchange, failure)
        else:
            if exchange.answer is not None:
                self._service.metrics.answered(exchange.dialect.name, exchange.answer)
        response.headers["x-request-id"] = exchange.id
        if self._service.is_stopping:
            response.headers["connection"] = "close"
        if not isinstance(response, _EventStream):  # that one is noted when it ends
            self._note(exchange, response.status_code, kind)
        return response

    def _refusal(self, exchange: _Exchange, failure: Failure) -> Response:
        status = exchange.dialect.status(failure)
        self._service.metrics.failed(exchange.dialect.name, failure.kind, status)
        content = msgspec.json.encode(exchange.dialect.error(failure, status))
        response = Response(content, status_code=status, media_type="application/json")
        if failure.retry_after_s is not None:
            response.headers["retry-after"] = str(math.ceil(failure.retry_after_s))
        if failure.kind == "unauthorized":
            response.headers["www-authenticate"] = "Bearer"
        if failure.kind in (*_BODY_UNREAD, "body_too_slow"):
            response.headers["connection"] = "close"
        return response

    def _note(self, exchange: _Exchange, status: int, kind: str | None) -> None:
        answer = exchange.answer
        line: dict[str, Any] = {
            "request_id": exchange.id,
            "path": exchange.request.url.path,
            "dialect": exchange.dialect.name,
            "status": status,
            "error": kind,
            "model": answer.model.name if answer else None,
            "n_documents": exchange.n_documents,
            "n_tokens": answer.n_tokens if answer else None,
            "n_cached_tokens": answer.n_cached if answer else None,
            "n_truncated": int(answer.truncated.sum()) if answer else None,
            "unknown_fields": _printable(exchange.unknown_fields) or None,
            "seconds": round(exchange.seconds, 6),
        }
        if answer:
            line |= {
                f"{stage}_seconds": round(getattr(answer.timings, stage), 6)
                for stage in ("tokenization", "queue", "inference")
            }
        _logger.info("request", extra={name: value for name, value in line.items() if value is not None})
        self._service.tracer.note(f"POST {line['path']}", exchange.request.headers, line, answer)

    def _check_key(self, request: Request) -> None:
        """Raise a Failure for a client without a key, or on a connection that is spare for probes."""
        if _is_spare(request):
            raise Failure(
                "unavailable",
                f"too many connections (limit {self._service.settings.limits.max_connections}); try again",
                retry_after_s=1.0,
            )
        if not self._service.settings.keys.allow(request.headers.get("authorization")):
            raise Failure("unauthorized", "expected the header Authorization: Bearer KEY with a key of this server")

    async def _body(self, exchange: _Exchange, body: Body) -> bytes:
        bodies.check_headers(exchange.request.headers, body)
        return await bodies.read(exchange.chunks, body, self._service.settings.limits.body_timeout_s)

    async def _decode(
        self, exchange: _Exchange, body: Body, content: bytes, endpoints: Sequence[Endpoint]
    ) -> tuple[Endpoint, Any]:
        """Return the endpoint of a body, and the decoded body. Its bytes are in memory only until then."""
        body.add_values(await _read(content, bodies.n_values))

        def decoded(content: bytes) -> tuple[Endpoint, Any]:
            given = fields.read(content)
            endpoint = choose(endpoints, exchange.request.headers, given)
            exchange.dialect = endpoint.dialect
            exchange.unknown_fields = endpoint.check(given)
            return endpoint, bodies.decode(content, endpoint.request)

        return await _read(content, decoded)

    async def _get_openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def _get_health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _get_ready(self, request: Request) -> Response:
        state = self._service.state
        if state == "ready":
            return _json({"status": "ready", "models": [model.name for model in self._service.models]})
        reason = {"reason": str(self._service.scheduler.outage)} if state == "unavailable" else {}
        return _json({"status": state, **reason}, status=503)

    async def _get_live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _get_v2_ready(self, request: Request) -> Response:
        is_ready = self._service.state == "ready"
        return _json({"ready": is_ready}, status=200 if is_ready else 503)

    async def _get_model_ready(self, request: Request) -> Response:
        """Answer for one model. A name that no model answers to is 404."""
        name, is_ready = request.path_params["name"], self._service.state == "ready"
        try:
            with self._service.models.use(name):
                return _json({"name": name, "ready": is_ready}, status=200 if is_ready else 503)
        except Failure as failure:
            return _json({"error": failure.message}, status=STATUSES[failure.kind])

    async def _get_metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.page(), headers={"content-type": CONTENT_TYPE})

    async def _get_info(self, request: Request) -> Response:
        exchange = _exchange(request, TEI)

        async def info() -> Response:
            self._check_key(request)
            with self._service.models.use(None) as model:
                return _json(self._info(model))

        return await self._respond(exchange, info())

    async def _tokenize(self, request: Request) -> Response:
        exchange = _exchange(request, TEI)

        async def tokenize() -> Response:
            self._check_key(request)
            with self._service.request() as body:
                content = await self._body(exchange, body)
                body.add_values(await _read(content, bodies.n_values))
                asked = await _read(content, lambda found: bodies.decode(found, TeiTokenize))
                with self._service.models.use(asked.model) as model:
                    return _json(await asyncio.to_thread(tokens.of_request, asked, model))

        return await self._respond(exchange, tokenize())

    def _models_route(self, dialect: Dialect) -> Any:
        async def get(request: Request) -> Response:
            exchange = _exchange(request, dialect)

            async def models() -> Response:
                self._check_key(request)
                assert dialect.models is not None
                return _json(dialect.models(self._cards()))

            return await self._respond(exchange, models())

        return get

    def _health_route(self, dialect: Dialect) -> Any:
        """Answer 503 until the models are loaded, like the dialect's own server."""

        async def get(request: Request) -> Response:
            assert dialect.health is not None
            if self._service.state != "ready":
                failure = Failure("unavailable", "the model is being loaded", retry_after_s=5.0)
                return _json(dialect.error(failure, 503), status=503)
            said = dialect.health()
            return Response() if said is None else _json(said)

        return get

    def _cards(self) -> list[Card]:
        settings, scheduler = self._service.settings, self._service.scheduler
        return [
            Card(
                name=model.name,
                source=model.artifact.manifest.source.id,
                revision=model.artifact.manifest.source.revision,
                precision=model.variant.precision,
                device="cuda" if model.served.capacity.is_gpu else "cpu",
                max_length=model.rules.max_length,
                longest=model.limit,
                long_documents=model.rules.long_documents,
                is_calibrated=model.is_calibrated,
                created=model.loaded_at,
                n_waiting=self._service.in_flight.n_requests,
                queue_tokens=scheduler.queue.n_tokens,
                max_queue_tokens=settings.limits.max_queue_tokens,
                run_tokens=settings.max_batch_tokens or model.served.capacity.run_tokens,
            )
            for model in self._service.models
        ]

    def _info(self, model: Model) -> TeiInfo:
        settings, manifest = self._service.settings, model.artifact.manifest
        return TeiInfo(
            model_id=manifest.source.id,
            model_sha=manifest.source.revision,
            model_dtype=model.variant.precision,
            served_model_name=model.name,
            max_concurrent_requests=settings.limits.max_connections,
            max_input_length=model.rules.max_length,
            max_batch_tokens=settings.max_batch_tokens or model.served.capacity.run_tokens,
            max_client_batch_size=settings.limits.max_documents,
            tokenization_workers=self._service.evaluator.n_threads,
            version=__version__,
            artifact=model.artifact.identity,
        )


class _EventStream(Response):
    """Server-sent events, until they end or the client leaves."""

    def __init__(
        self, exchange: _Exchange, events: AsyncGenerator[bytes], open_things: Any, headers: Mapping[str, str]
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._exchange = exchange
        self._events = events
        self._open_things = open_things

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._open_things, contextlib.aclosing(self._events):
            with contextlib.suppress(ClientDisconnect):
                await _unless_client_leaves(self._exchange.request, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _exchange(request: Request, dialect: Dialect) -> _Exchange:
    """Return a new exchange. Its id is the client's, if that is safe in a log and a header."""
    given = request.headers.get("x-request-id", "")
    name = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    return _Exchange(request=request, chunks=request.stream(), id=name, started=time.monotonic(), dialect=dialect)


def _is_spare(request: Request) -> bool:
    return bool(request.scope.get("state", {}).get(IS_SPARE))


async def _read(content: bytes, how: Callable[[bytes], T]) -> T:
    """Return the result of reading a body; a thread reads a large one."""
    if len(content) < _DECODE_ELSEWHERE_BYTES:
        return how(content)
    return await asyncio.to_thread(how, content)


def _printable(unknown_fields: Sequence[str]) -> str:
    """Return the names of fields in a form that is safe in a header and a log."""
    return ", ".join(name for name in unknown_fields[:10] if _REQUEST_ID.fullmatch(name))


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work. If the client leaves first, cancel it and raise ClientDisconnect."""
    task, leaving = asyncio.create_task(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        del task, leaving  # an error leads to this frame, which would lead to the task, and that to the error


async def _chain(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for item in rest:
        yield item


def _answer_headers(exchange: _Exchange, answer: Answer) -> dict[str, str]:
    """Return an answer's figures under TEI's names, and the counts of truncated and missing documents."""
    timings = answer.timings
    headers = {
        "x-compute-type": "gpu" if answer.model.served.capacity.is_gpu else "cpu",
        "x-compute-time": _milliseconds(timings.compute),
        "x-compute-tokens": str(answer.n_tokens),
        "x-total-time": _milliseconds(exchange.seconds),
        "x-tokenization-time": _milliseconds(timings.tokenization),
        "x-queue-time": _milliseconds(timings.queue),
        "x-inference-time": _milliseconds(timings.inference),
        "x-rankrt-truncated": str(int(answer.truncated.sum())),
    }
    if answer.query_truncated.any():
        headers["x-rankrt-query-truncated"] = "true"
    if shown := _printable(exchange.unknown_fields):
        headers["x-rankrt-unknown-fields"] = shown
    if not answer.is_complete:
        headers["x-rankrt-partial"] = f"{int(answer.is_scored.sum())}/{len(answer.logits)}"
    return headers


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


def _page_route(page: pages.Page) -> Any:
    async def get(request: Request) -> Response:
        return Response(page.content, media_type=page.media_type, headers=dict(page.headers))

    return get


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer requests without a route, in the dialect's words below its prefix, else in words for any client."""
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path
    text = {404: advice_for(path), 405: "this path takes another method; see /docs"}.get(status, error.detail)
    if (dialect := dialect_of(path)) is not None:
        response = _json(dialect.error(Failure("not_found", text), status), status=status)
    else:
        said = {"message": text, "type": "NotFoundError", "code": status}
        response = _json({"error": said, "message": text, "detail": text}, status=status)
    response.headers.update(error.headers or {})
    return response
