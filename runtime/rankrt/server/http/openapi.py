"""The server's OpenAPI description, made from the Structs that it decodes and encodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rankrt import __version__
from rankrt.server.dialects import Dialect, Endpoint
from rankrt.server.dialects.cohere import CohereModels
from rankrt.server.dialects.infinity import InfinityHealth, InfinityModels
from rankrt.server.dialects.jina import JINA, JinaRanking
from rankrt.server.dialects.llamacpp import LlamacppHealth
from rankrt.server.dialects.openai import OpenAIModels
from rankrt.server.dialects.rankrt import RankrtModels
from rankrt.server.dialects.tei import TEI, TeiError, TeiInfo, TeiToken, TeiTokenize
from rankrt.server.dialects.vllm import VLLM
from rankrt.server.http.routes import BARE, DIALECTS, ENDPOINTS, prefixed

_REF = "#/components/schemas/{name}"
_DESCRIPTION = (
    "Rerankers, in every dialect. A path below a dialect's name belongs to that dialect. Where several dialects share a"
    " path, the fields of the body decide. null means the same as leaving a field out. A field that would change the"
    " scores and is not supported is refused by name."
)
_EVENT = {
    "type": "object",
    "description": "hit: a result; done: the ranking; error: the reason for a failure. `data` is JSON.",
    "properties": {"event": {"enum": ["hit", "done", "error"]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
_REFUSALS = {
    "400": "the body is not JSON, or asks for something impossible",
    "401": "the key is missing or unknown",
    "404": "no model has that name",
    "408": "the body came too slowly",
    "413": "the body is too large, or has too many documents",
    "415": "the body is not application/json",
    "422": "the body asks for something impossible",
    "424": "the model returned NaN or infinity",
    "429": "the queue is full; see Retry-After",
    "500": "an internal error, or the model returned NaN or infinity",
    "503": "the model is loading, scoring failed, or the server is stopping; see Retry-After",
    "504": "not scored in time",
}
_HEADERS = {
    "x-request-id": "the id of the request, from the client or generated",
    "x-compute-tokens": "tokens of all rows",
    "x-total-time": "milliseconds, as in x-tokenization-time, x-queue-time and x-inference-time",
    "x-rankrt-score-kind": "what the scores are: logit, sigmoid or probability",
    "x-rankrt-truncated": "documents that were truncated",
    "x-rankrt-query-truncated": "true if the query was truncated",
    "x-rankrt-partial": "scored documents / all documents, if the deadline came first",
    "x-rankrt-unknown-fields": "ignored fields of the body",
}
# KServe's clients have OpenAI's paths below /openai.
MODELS_PATHS = ("/models", "/v1/models", "/openai/v1/models")
_MODELS: Mapping[str, Any] = {"cohere": CohereModels, "infinity": InfinityModels, "rankrt": RankrtModels}
_HEALTH: Mapping[str, Any] = {"infinity": InfinityHealth, "llamacpp": LlamacppHealth}


def describe(*, needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document."""
    schemas, components = _schemas()
    paths = {path: _operation([endpoint], schemas, path) for path, endpoint in prefixed().items()}
    paths |= {path: _operation(endpoints, schemas, path) for path, endpoints in BARE.items()}
    paths["/v1/rerank/stream"] = _stream(schemas)
    paths |= {path: _tokenize(schemas, path) for path in ("/tokenize", "/tei/tokenize")}
    for path, operation in _operations(schemas).items():
        paths.setdefault(path, {}).update(operation)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "rankrt", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _schemas() -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Return the schema of each type of a request or an answer, and the schemas that these refer to."""
    types: dict[Any, None] = {endpoint.request: None for endpoint in ENDPOINTS}
    types |= {endpoint.response: None for endpoint in ENDPOINTS}
    types |= {dialect.error_type: None for dialect in DIALECTS}
    types |= dict.fromkeys([JinaRanking, TeiTokenize, list[list[TeiToken]], TeiInfo, OpenAIModels])
    types |= dict.fromkeys([*_MODELS.values(), *_HEALTH.values()])
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    for endpoint in ENDPOINTS:
        rule = {"propertyNames": {"not": {"enum": endpoint.refused_names}}}
        components[endpoint.request.__name__] |= {"additionalProperties": False} if endpoint.dialect.is_strict else rule
    return dict(zip(types, schemas, strict=True)), dict(components)


def _operation(endpoints: Sequence[Endpoint], schemas: Mapping[Any, Any], path: str) -> dict[str, Any]:
    first = endpoints[0]
    body = _json([schemas[e.request] for e in endpoints])
    body["application/json"]["examples"] = {e.dialect.name: {"value": e.example} for e in endpoints}
    return {
        "post": {
            "summary": first.summary,
            "operationId": "post" + path.replace("/", "_"),
            "tags": [endpoint.dialect.name for endpoint in endpoints],
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": {
                    "description": "the scores",
                    "content": _json([schemas[e.response] for e in endpoints]),
                    "headers": {
                        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
                    },
                },
                **_refusals([schemas[e.dialect.error_type] for e in endpoints]),
            },
        }
    }


def _stream(schemas: Mapping[Any, Any]) -> dict[str, Any]:
    (endpoint,) = [e for e in ENDPOINTS if e.dialect is JINA]
    operation = _operation([endpoint], schemas, "/v1/rerank/stream")
    operation["post"]["summary"] = "rank documents with server-sent events: hits as they are scored, then the ranking"
    answer = operation["post"]["responses"]["200"]
    answer["content"] = {"text/event-stream": {"schema": _EVENT}}
    # The other headers are figures, which are not known when a stream begins.
    answer["headers"] = {name: answer["headers"][name] for name in ("x-request-id", "x-rankrt-score-kind")}
    return operation


def _tokenize(schemas: Mapping[Any, Any], path: str) -> dict[str, Any]:
    body = _json([schemas[TeiTokenize]])
    body["application/json"]["examples"] = {"tei": {"value": {"inputs": ["what is panda?"]}}}
    return {
        "post": {
            "summary": "the tokens of texts, and their bytes",
            "operationId": "post" + path.replace("/", "_"),
            "tags": ["tei"],
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": {"description": "the tokens", "content": _json([schemas[list[list[TeiToken]]]])},
                **_refusals([schemas[TeiError]]),
            },
        }
    }


def _operations(schemas: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the paths about the server's state and its models."""
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    text = {"text/plain": {"schema": {"type": "string"}}}
    alive = _get("200 while the server is alive", _content(status), needs_key=False)
    ready = _get("200 when the models are loaded and warm, else 503", _content(status), needs_key=False)
    ready["get"]["responses"]["503"] = {"description": "the models are loading", "content": _content(status)}
    info = _get("the served model, in TEI's form", _json([schemas[TeiInfo]]), TEI, schemas)
    models = _get("the served models, in the form of OpenAI and vLLM", _json([schemas[OpenAIModels]]), VLLM, schemas)
    operations = {
        "/health": alive,
        "/ping": alive,
        "/ready": ready,
        "/metrics": _get("figures for Prometheus", text, needs_key=False),
        "/info": info,
        "/tei/info": info,
        **dict.fromkeys(MODELS_PATHS, models),
        **_open_inference_operations(),
    }
    for dialect in DIALECTS:
        for path in dialect.models_paths if dialect.models else ():
            content = _json([schemas[_MODELS.get(dialect.name, OpenAIModels)]])
            operations[f"/{dialect.name}{path}"] = _get("the served models", content, dialect, schemas)
        if dialect.health is not None:
            shape = _HEALTH.get(dialect.name)
            content = _json([schemas[shape]]) if shape else {}
            asked = _get("200 when the models are loaded, else 503", content, dialect, schemas, needs_key=False)
            operations[f"/{dialect.name}/health"] = asked
    return {
        path: {"get": {**operation["get"], "operationId": "get" + path.replace("/", "_")}}
        for path, operation in operations.items()
    }


def _open_inference_operations() -> dict[str, Any]:
    """Return the health paths of the Open Inference Protocol."""
    live, ready = _object(live="boolean"), _object(ready="boolean")
    model = _content(_object(name="string", ready="boolean"))
    operations = {
        "/v2/health/live": _get("200 while the server is alive", _content(live), needs_key=False),
        "/v2/health/ready": _get("200 when the models are loaded, else 503", _content(ready), needs_key=False),
        "/v2/models/{name}/ready": _get("200 when this model is loaded, else 503", model, needs_key=False),
    }
    loading = {"description": "the models are loading", "content": _content(ready)}
    operations["/v2/health/ready"]["get"]["responses"]["503"] = loading
    asked = operations["/v2/models/{name}/ready"]["get"]
    asked["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    asked["responses"]["404"] = {"description": "no model has that name", "content": _content(_object(error="string"))}
    asked["responses"]["503"] = {"description": "the model is loading", "content": _content({"type": "object"})}
    return operations


def _object(**types: str) -> dict[str, Any]:
    """Return the schema of an object that has all of these."""
    return {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in types.items()},
        "required": [*types],
    }


def _get(
    summary: str,
    content: Mapping[str, Any],
    dialect: Dialect | None = None,
    schemas: Mapping[Any, Any] | None = None,
    *,
    needs_key: bool = True,
) -> dict[str, Any]:
    """Return the operation of a GET, with the dialect's own errors, if it has any."""
    responses: dict[str, Any] = {"200": {"description": "the answer", **({"content": content} if content else {})}}
    if dialect is not None and schemas is not None:
        error = _json([schemas[dialect.error_type]])
        refusals = ("401", "503") if needs_key else ("503",)
        responses |= {status: {"description": _REFUSALS[status], "content": error} for status in refusals}
    operation: dict[str, Any] = {
        "summary": summary,
        "tags": [dialect.name if dialect else "operations"],
        "responses": responses,
    }
    return {"get": operation if needs_key else {**operation, "security": []}}


def _refusals(schemas: Sequence[Any]) -> dict[str, Any]:
    return {status: {"description": text, "content": _json(schemas)} for status, text in _REFUSALS.items()}


def _json(schemas: Sequence[Any]) -> dict[str, Any]:
    unique = list({repr(schema): schema for schema in schemas}.values())
    return _content(unique[0] if len(unique) == 1 else {"anyOf": unique})


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
