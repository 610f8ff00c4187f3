"""The paths of the dialects.

Below its own prefix (/tei, /cohere, ...) a dialect is the only one. A path without a prefix belongs to the dialects
whose clients use it. Where several share a path, the fields of the request decide.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import msgspec

from rankrt.server.dialects import (
    Dialect,
    Endpoint,
    cohere,
    fields,
    infinity,
    jina,
    llamacpp,
    mixedbread,
    nim,
    rankrt,
    tei,
    vllm,
    voyage,
)

ENDPOINTS: Sequence[Endpoint] = (
    *tei.ENDPOINTS,
    *jina.ENDPOINTS,
    *cohere.ENDPOINTS,
    *vllm.ENDPOINTS,
    *infinity.ENDPOINTS,
    *llamacpp.ENDPOINTS,
    *voyage.ENDPOINTS,
    *mixedbread.ENDPOINTS,
    *nim.ENDPOINTS,
    *rankrt.ENDPOINTS,
)
DIALECTS: Sequence[Dialect] = tuple({endpoint.dialect.name: endpoint.dialect for endpoint in ENDPOINTS}.values())


def prefixed() -> Mapping[str, Endpoint]:
    """Return the paths of a single dialect, below its prefix."""
    return {f"/{endpoint.dialect.name}{path}": endpoint for endpoint in ENDPOINTS for path in endpoint.paths}


_PREFIXED = prefixed()

# The first endpoint of a path answers requests that cannot be read, and those that fit several equally well.
BARE: Mapping[str, Sequence[Endpoint]] = {
    path: [_PREFIXED[own] for own in owns]
    for path, owns in {
        "/rerank": ("/tei/rerank", "/vllm/rerank", "/infinity/rerank"),
        "/": ("/tei/rerank", "/vllm/rerank", "/infinity/rerank"),
        "/v1/rerank": ("/jina/v1/rerank", "/vllm/v1/rerank", "/cohere/v1/rerank"),
        "/v2/rerank": ("/cohere/v2/rerank", "/vllm/v2/rerank"),
        # KServe's own servers have vLLM's path below this prefix.
        "/openai/v1/rerank": ("/vllm/v1/rerank",),
        "/predict": ("/tei/predict",),
        "/invocations": ("/tei/invocations",),
        "/score": ("/vllm/score",),
        "/v1/score": ("/vllm/score",),
        "/reranking": ("/llamacpp/reranking",),
        "/v1/reranking": ("/llamacpp/v1/reranking", "/mixedbread/v1/reranking"),
        "/v1/ranking": ("/nim/v1/ranking",),
    }.items()
}

# Paths of other APIs, and the paths that their clients can use here.
_ELSEWHERE = (
    (
        r"(/v\d)?/embed(dings?)?(/.*)?|/embed_\w+|/api/embed.*",
        "this server ranks documents; it does not make embeddings",
    ),
    (r"/v\d/(chat/)?completions|/api/(chat|generate)", "this server ranks documents; it does not generate text"),
    (r"/v1/inference/.*", "DeepInfra's API is not supported; POST /v1/rerank with `query` and `documents`"),
    (r"/v3/rerank", "POST /v2/rerank, which has the same requests and answers"),
    (r"/api/v1/services/rerank/.*", "DashScope's API is not supported; POST /v1/rerank"),
    (r"/v1/retrieval/.*", "POST /v1/ranking, which has the same requests and answers"),
    (
        r".*(/rerank/rerank|/v\d/v\d/.*)",
        "a part of it is repeated; clients add that part to their address themselves",
    ),
    (
        r"(/tei)?/(decode|similarity|vertex)",
        "of TEI's paths this server has /rerank, /predict, /tokenize, /info and /health",
    ),
)


def choose(candidates: Sequence[Endpoint], headers: Mapping[str, str], given: fields.Given) -> Endpoint:
    """Return the endpoint for a request.

    A header names Cohere's own client. For others, the endpoints whose required fields are all present compete. The one
    that knows most of the fields wins.
    """
    is_cohere = headers.get("x-fern-sdk-name") == "cohere" or "x-client-name" in headers
    for endpoint in candidates:
        if is_cohere and endpoint.dialect is cohere.COHERE:
            return endpoint
    able = [endpoint for endpoint in candidates if _required(endpoint.request) <= given.keys()]
    return max(able or candidates, key=lambda endpoint: len(fields.names_of(endpoint.request) & given.keys()))


def dialect_of(path: str) -> Dialect | None:
    """Return the dialect whose prefix a path has."""
    return next((dialect for dialect in DIALECTS if path.startswith(f"/{dialect.name}/")), None)


def advice_for(path: str) -> str:
    """Return what to do about a path that does not exist."""
    said = next((text for pattern, text in _ELSEWHERE if re.fullmatch(pattern, path)), None)
    return f"this path does not exist: {said}" if said else "this path does not exist; see /docs"


@functools.cache
def _required(shape: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(shape) if field.required)
