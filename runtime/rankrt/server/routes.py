"""Which dialect is spoken where.

Below its own prefix (/tei, /cohere, ...) a dialect is what it is. Without one, a path belongs to the dialect whose
clients use it; where two share a path, the request says which it is.
"""

from collections.abc import Mapping, Sequence

import msgspec

from rankrt.server.dialects import Endpoint, cohere, infinity, jina, llamacpp, rankrt, tei, vllm

ENDPOINTS: Sequence[Endpoint] = (
    *tei.ENDPOINTS,
    *jina.ENDPOINTS,
    *cohere.ENDPOINTS,
    *vllm.ENDPOINTS,
    *infinity.ENDPOINTS,
    *llamacpp.ENDPOINTS,
    *rankrt.ENDPOINTS,
)


def prefixed() -> Mapping[str, Endpoint]:
    """Return the paths where one dialect is spoken and no other."""
    return {f"/{endpoint.dialect.name}{path}": endpoint for endpoint in ENDPOINTS for path in endpoint.paths}


def _only(dialect: str, path: str) -> Sequence[Endpoint]:
    return (prefixed()[f"/{dialect}{path}"],)


# The first endpoint of a path is the one that answers what cannot be read at all.
BARE: Mapping[str, Sequence[Endpoint]] = {
    "/rerank": (*_only("tei", "/rerank"), *_only("vllm", "/rerank")),
    "/": (*_only("tei", "/rerank"), *_only("vllm", "/rerank")),
    "/v1/rerank": (*_only("jina", "/v1/rerank"), *_only("cohere", "/v1/rerank")),
    "/v2/rerank": _only("cohere", "/v2/rerank"),
    "/predict": _only("tei", "/predict"),
    "/score": _only("vllm", "/score"),
    "/v1/score": _only("vllm", "/v1/score"),
    "/reranking": _only("llamacpp", "/reranking"),
    "/v1/reranking": _only("llamacpp", "/v1/reranking"),
}


class _Keys(msgspec.Struct, frozen=True):
    """Whether a body has `texts`; the rest is skipped."""

    texts: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def choose(candidates: Sequence[Endpoint], headers: Mapping[str, str], body: bytes) -> Endpoint:
    """Return the endpoint that a request means: TEI's has `texts`, Cohere's own client says its name."""
    first, *others = candidates
    if not others:
        return first
    if first.dialect is jina.JINA:
        return others[0] if _is_cohere(headers) else first
    return first if _has_texts(body) else others[0]


def _is_cohere(headers: Mapping[str, str]) -> bool:
    return headers.get("x-fern-sdk-name") == "cohere" or "x-client-name" in headers


def _has_texts(body: bytes) -> bool:
    """Tell whether a body has `texts`, or cannot be read."""
    try:
        return msgspec.json.decode(body, type=_Keys).texts is not msgspec.UNSET
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
