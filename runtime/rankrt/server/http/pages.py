"""The pages for people: the playground and the description of the API. They load nothing from other hosts."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from rankrt.server.dialects import Dialect
from rankrt.server.failures import Failure
from rankrt.server.http.routes import DIALECTS

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_CONTENT_TYPE = "-H 'content-type: application/json'"
_WITH_KEY = "-H 'authorization: Bearer KEY'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page or a part of one, and its headers. They allow only its own scripts and styles, and this server only."""

    content: bytes
    media_type: str
    headers: Mapping[str, str]


def playground() -> Mapping[str, Page]:
    """Return the page to try models on, its style and its modules, by their paths.

    The browser takes scripts and styles from this server only, and none from the page itself. A text that a script
    would turn into markup is refused by the browser.
    """
    policy = _policy(script="'self'", style="'self'") + "; require-trusted-types-for 'script'; trusted-types 'none'"
    found = {file.name: file.read_bytes() for file in files("rankrt.server").joinpath("playground").iterdir()}
    paths = {name: "/" if name == "index.html" else f"/playground/{name}" for name in found}
    return {
        paths[name]: Page(content=found[name], media_type=_TYPES[Path(name).suffix], headers=_headers(policy))
        for name in sorted(found)
    }


def documentation(openapi: Mapping[str, Any]) -> Page:
    """Return the description of the API as a page."""
    text = files("rankrt.server.http").joinpath("docs.html").read_text(encoding="utf-8")
    needs_key = "security" in openapi
    answer = openapi["paths"]["/rerank"]["post"]["responses"]
    parts = {
        "start": f"<pre>{html.escape(_curl('POST', '/rerank', openapi))}</pre>",
        "keys": _keys(needs_key=needs_key),
        "shapes": _table(("dialect", "body"), ((d.name, _error_of(d)) for d in DIALECTS)),
        "statuses": _table(
            ("status", "meaning"),
            ((status, html.escape(said["description"])) for status, said in answer.items() if status != "200"),
        ),
        "headers": _table(
            ("header", "value"),
            ((f"<code>{name}</code>", said["description"]) for name, said in answer["200"]["headers"].items()),
        ),
        "paths": "\n".join(_sections(openapi)),
    }
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return _page(text)


def _keys(*, needs_key: bool) -> str:
    said = (
        f"This server needs a key: send <code>authorization: Bearer KEY</code>, with curl <code>{_WITH_KEY}</code>."
        if needs_key
        else "This server needs no key. With <code>--api-key-file</code> or <code>RANKRT_API_KEY</code> it does, and"
        " clients then send <code>authorization: Bearer KEY</code>."
    )
    return f"<p>{said} Health, readiness, metrics and the two pages never need one.</p>"


def _error_of(dialect: Dialect) -> str:
    failure = Failure("invalid", "the query is empty")
    error = msgspec.json.encode(dialect.error(failure, dialect.status(failure)))
    return f"<code>{html.escape(error.decode())}</code>"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{first}</td><td>{second}</td></tr>" for first, second in rows)
    return f"<table><thead><tr><th>{head[0]}</th><th>{head[1]}</th></tr></thead><tbody>{body}</tbody></table>"


def _sections(openapi: Mapping[str, Any]) -> list[str]:
    """Return the paths: first those without a prefix, then dialect by dialect, then the server's own."""
    groups: dict[str, list[str]] = {"Paths without a prefix": []}
    groups |= {dialect.name: [] for dialect in DIALECTS} | {"operations": []}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            prefix = next((d.name for d in DIALECTS if path.startswith(f"/{d.name}/")), None)
            group = prefix or ("operations" if method == "get" else "Paths without a prefix")
            groups[group].append(_details(method, path, operation, openapi))
    return [f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>{"".join(paths)}' for name, paths in groups.items()]


def _details(method: str, path: str, operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    tags = f" <span>{html.escape(', '.join(operation['tags']))}</span>" if method == "post" else ""
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code>{tags}"
        f" {html.escape(operation['summary'])}</summary>"
        f"<pre>{html.escape(_curl(method.upper(), path, openapi))}</pre>{_schemas(operation, openapi)}</details>"
    )


def _curl(method: str, path: str, openapi: Mapping[str, Any]) -> str:
    """Return commands to try a path, one for each of its dialects."""
    operation = openapi["paths"][path][method.lower()]
    key = f" {_WITH_KEY}" if "security" in openapi and operation.get("security") != [] else ""
    url = f"http://localhost:8080{path}"
    if method == "GET":
        return f"curl {url}{key}"
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    commands = {n: f"curl {url} {_CONTENT_TYPE}{key} \\\n  -d '{json.dumps(e['value'])}'" for n, e in examples.items()}
    if len(commands) == 1:
        return next(iter(commands.values()))
    return "\n\n".join(f"# {name}\n{command}" for name, command in commands.items())


def _schemas(operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    bodies = {"request": operation.get("requestBody"), "answer": operation["responses"]["200"]}
    parts = []
    for name, body in bodies.items():
        schema = next(iter(body["content"].values()))["schema"] if body and "content" in body else None
        if schema:
            text = json.dumps(_resolve(schema, openapi), indent=2, ensure_ascii=False)
            parts.append(f"<details><summary>{name} as JSON schema</summary><pre>{html.escape(text)}</pre></details>")
    return "".join(parts)


def _resolve(schema: Any, openapi: Mapping[str, Any]) -> Any:
    """Return a schema with its references resolved."""
    if isinstance(schema, list):
        return [_resolve(item, openapi) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolve(openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]], openapi)
    return {name: _resolve(value, openapi) for name, value in schema.items()}


def _page(text: str) -> Page:
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = _policy(script="'none'", style=f"'sha256-{digest}'")
    return Page(content=text.encode(), media_type="text/html", headers=_headers(policy))


def _policy(*, script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:;"
        " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def _headers(policy: str) -> Mapping[str, str]:
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
