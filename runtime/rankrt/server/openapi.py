"""The server's description of itself, made from the Structs that it decodes and encodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rankrt import __version__
from rankrt.server.dialects import Endpoint
from rankrt.server.dialects.jina import JinaRanking
from rankrt.server.routes import BARE, ENDPOINTS, prefixed

_REF = "#/components/schemas/{name}"
_EVENT = {
    "type": "object",
    "description": "hit: a result; done: the ranking; error: why there is none. `data` is JSON.",
    "properties": {"event": {"enum": ["hit", "done", "error"]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
_REFUSALS = {
    "400": "the body is not JSON, or says something that cannot be done",
    "401": "the key is missing or unknown",
    "404": "no model of that name",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "422": "the body says something that cannot be done",
    "424": "the model answered with what is no score",
    "429": "too much is waiting; see Retry-After",
    "500": "an error of the server",
    "503": "not loaded yet, or scoring failed",
    "504": "not scored in time",
}


def describe(*, needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document."""
    types = {endpoint.request: None for endpoint in ENDPOINTS}
    types |= {endpoint.response: None for endpoint in ENDPOINTS}
    types |= {endpoint.dialect.error_type: None for endpoint in ENDPOINTS}
    schemas, components = msgspec.json.schema_components([*types, JinaRanking], ref_template=_REF)
    found = dict(zip([*types, JinaRanking], schemas, strict=True))
    paths = {path: _operation([endpoint], found, path) for path, endpoint in prefixed().items()}
    paths |= {path: _operation(endpoints, found, path) for path, endpoints in BARE.items()}
    paths["/v1/rerank/stream"] = _stream(found)
    paths |= _operations()
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "rankrt", "version": __version__, "description": "Rerankers, in every dialect."},
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _operation(endpoints: Sequence[Endpoint], schemas: Mapping[Any, Any], path: str) -> dict[str, Any]:
    first = endpoints[0]
    return {
        "post": {
            "summary": first.summary,
            "operationId": "post" + path.replace("/", "_"),
            "tags": [endpoint.dialect.name for endpoint in endpoints],
            "requestBody": {"required": True, "content": _json([schemas[e.request] for e in endpoints])},
            "responses": {
                "200": {"description": "the scores", "content": _json([schemas[e.response] for e in endpoints])},
                **_refusals([schemas[e.dialect.error_type] for e in endpoints]),
            },
        }
    }


def _stream(schemas: Mapping[Any, Any]) -> dict[str, Any]:
    (endpoint,) = [e for e in ENDPOINTS if e.dialect.name == "jina"]
    operation = _operation([endpoint], schemas, "/v1/rerank/stream")
    operation["post"]["summary"] = "the same as server-sent events: hits as they are scored, then the ranking"
    operation["post"]["responses"]["200"]["content"] = {"text/event-stream": {"schema": _EVENT}}
    return operation


def _operations() -> dict[str, Any]:
    texts = {
        "/health": "200 while the server is alive",
        "/ready": "200 when the models are loaded and warm, else 503",
        "/info": "what is served, as TEI says it",
        "/v1/models": "what is served, as OpenAI says it",
    }
    answer = {"description": "the answer", "content": {"application/json": {"schema": {}}}}
    return {
        path: {
            "get": {
                "summary": text,
                "operationId": "get" + path.replace("/", "_"),
                "tags": ["operations"],
                "responses": {"200": answer, "401": answer, "503": answer},
            }
        }
        for path, text in texts.items()
    }


def _refusals(schemas: Sequence[Any]) -> dict[str, Any]:
    return {status: {"description": text, "content": _json(schemas)} for status, text in _REFUSALS.items()}


def _json(schemas: Sequence[Any]) -> dict[str, Any]:
    unique = list({repr(schema): schema for schema in schemas}.values())
    return {"application/json": {"schema": unique[0] if len(unique) == 1 else {"anyOf": unique}}}
