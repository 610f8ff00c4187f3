"""What the files in deploy/ are compared with: memory, and the figures of a server."""

import re

GIB = 1 << 30
# The server without requests, and a model of 568 M parameters in fp32: see the comments beside the figures.
SERVER_AND_MODEL = 2.8 * GIB


def bytes_of(size: str) -> int:
    """Return the bytes of a size such as 6Gi; systemd's G is a GiB as well."""
    found = re.fullmatch(r"(\d+)([GM])i?", size)
    assert found is not None
    return int(found[1]) * (GIB if found[2] == "G" else 1 << 20)


def figures_of(page: str) -> dict[str, set[str]]:
    """Return the names of the figures on a page of metrics, each with the names of its labels."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? \S+$", page, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels))
    return found
