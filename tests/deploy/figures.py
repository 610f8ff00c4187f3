"""What the files in deploy/ are compared with: memory, and the figures of a server that has answered."""

import re
from typing import Any

GIB = 1 << 30
# The server without requests, and a model of 568 M parameters in fp32: see the comments beside the figures.
SERVER_AND_MODEL = 2.8 * GIB


def bytes_of(size: str) -> int:
    """Return the bytes of a size such as 6Gi; systemd's G is a GiB as well."""
    number, unit = re.fullmatch(r"(\d+)([GM])i?", size).groups()  # type: ignore[union-attr]
    return int(number) * (GIB if unit == "G" else 1 << 20)


def figures(address: str) -> dict[str, set[str]]:
    """Return the names of a server's figures, each with the names of its labels, after an answer and a refusal."""
    import httpx

    for body in ({"query": "one", "texts": ["two"]}, {"query": "one"}, {"query": "one", "texts": ["two " * 500]}):
        httpx.post(f"{address}/rerank", json=body)
    found: dict[str, set[str]] = {}
    lines: Any = re.findall(r"^([a-z_]+)(?:\{(.*)\})? \S+$", httpx.get(f"{address}/metrics").text, re.MULTILINE)
    for name, labels in lines:
        found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels))
    return found
