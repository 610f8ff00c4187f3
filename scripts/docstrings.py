"""How our docstrings become pages: a name with its meaning beside it or below is a definition, a tree is code.

mkdocs.yml hands this to mkdocstrings; it runs in the environment of `make site` only.
"""

import re
from typing import Any

import griffe

_DEFINITION = re.compile(r"^([\w`*]+(?:, [\w`*]+)*)(?:\n| {2,}(?=\S)(.*)\n?)((?:    .*(?:\n|$))*)", re.MULTILINE)
_TREE = re.compile(r"^(?:.+\n)?(?:[├└│].*(?:\n|$))+", re.MULTILINE)


class Docstrings(griffe.Extension):  # type: ignore[misc]  # not installed where mypy runs
    """Rewrites each docstring as Markdown when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Return a docstring with definitions and trees as Markdown writes them."""
    with_code = _TREE.sub(lambda found: f"```text\n{found[0].rstrip()}\n```\n", docstring)
    return _DEFINITION.sub(_as_definition, with_code)


def _as_definition(found: re.Match[str]) -> str:
    name, beside, below = found.groups()
    if not beside and not below:
        return found[0]
    meaning = " ".join(f"{beside or ''} {below}".split())
    return f"\n`{name}`\n:   {meaning}\n"
