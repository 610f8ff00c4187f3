"""What all adapters need: their framework in a release that has what they use, and a loaded reranker."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankrt.errors import InputError, MissingExtra
from rankrt.reranker import Reranker


@contextmanager
def framework(distribution: str, *, least: str, extra: str) -> Iterator[None]:
    """Import a framework inside this block. Raises MissingExtra, with the pip command, if it is absent or too old."""
    try:
        found = version(distribution)
    except PackageNotFoundError as error:
        raise MissingExtra(
            f"this adapter needs {distribution} {least} or newer, which is not installed: pip install 'rankrt[{extra}]'"
        ) from error
    if _numbers(found) < _numbers(least):
        raise MissingExtra(
            f"this adapter needs {distribution} {least} or newer, and {found} is installed:"
            f" pip install --upgrade 'rankrt[{extra}]'"
        )
    yield


def loaded(model: object, load_options: Mapping[str, Any] | None) -> Reranker:
    """Return a reranker that is given, or load the one that is named, with the options of `Reranker.load`."""
    if isinstance(model, Reranker):
        if load_options:
            raise InputError("load_options are for a model that is loaded here; this one is loaded already")
        return model
    if not isinstance(model, str | Path):
        raise InputError(f"model is {type(model).__name__}, expected a folder, a hub id or a loaded Reranker")
    return Reranker.load(model, **load_options or {})


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:3]))
