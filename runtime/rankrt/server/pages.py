"""The pages for people: the playground and the description of the interface. Nothing is loaded from another host."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page and the headers that keep it to itself: only its own script and style run, only this server is asked."""

    content: bytes
    headers: Mapping[str, str]


def playground() -> Page:
    """Return the page to try a model on."""
    return _page(files("rankrt.server").joinpath("playground.html").read_text(encoding="utf-8"))


def documentation(openapi: Mapping[str, Any]) -> Page:
    """Return the interface as a page to read."""
    template = files("rankrt.server").joinpath("docs.html").read_text(encoding="utf-8")
    return _page(template.replace("<!-- paths -->", "\n".join(_paths(openapi))))


def _paths(openapi: Mapping[str, Any]) -> list[str]:
    return [
        f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code>"
        f" <span>{html.escape(', '.join(operation['tags']))}</span> {html.escape(operation['summary'])}</summary>"
        f"{_schemas(operation, openapi)}</details>"
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def _schemas(operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    bodies = {"request": operation.get("requestBody"), "answer": operation["responses"]["200"]}
    parts = []
    for name, body in bodies.items():
        schema = next(iter(body["content"].values()))["schema"] if body else None
        if schema:
            text = json.dumps(_resolved(schema, openapi), indent=2, ensure_ascii=False)
            parts.append(f"<h3>{name}</h3><pre>{html.escape(text)}</pre>")
    return "".join(parts)


def _resolved(schema: Any, openapi: Mapping[str, Any]) -> Any:
    """Return a schema with what it refers to in the place of references."""
    if isinstance(schema, list):
        return [_resolved(item, openapi) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]], openapi)
    return {name: _resolved(value, openapi) for name, value in schema.items()}


def _page(text: str) -> Page:
    hashes = {tag: _hashes(text, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self';"
        " img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    return Page(
        content=text.encode(),
        headers={
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        },
    )


def _hashes(text: str, tag: str) -> str:
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
