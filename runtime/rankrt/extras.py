"""The optional parts of rankrt, found by entry point: the runtime knows their names, not their modules."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rankrt.errors import MissingExtra


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A part that is installed apart: what it does, and what brings it."""

    help: str
    pip: str


EXTRAS = {
    "export": Extra(help="turn a Hugging Face checkpoint into an artifact", pip="rankrt[cpu,export]"),
    "serve": Extra(help="answer rerank requests over HTTP, in every client's dialect", pip="rankrt[cpu,server]"),
}


def commands() -> dict[str, EntryPoint]:
    """Return the subcommands that other parts of rankrt bring; none of them is imported."""
    return {point.name: point for point in entry_points(group="rankrt.commands") if point.name in EXTRAS}


def exporter() -> Callable[..., None]:
    """Return the function that exports a checkpoint. Raises MissingExtra if it is not installed."""
    for point in entry_points(group="rankrt.exporters"):
        export: Callable[..., None] = load(point)
        return export
    raise MissingExtra(f"exporting needs the export half of rankrt: pip install '{EXTRAS['export'].pip}'")


def load(point: EntryPoint) -> Any:
    """Import what an entry point names. Raises MissingExtra, with the pip command, if a module is missing."""
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise missing(point.name, error) from error


def missing(name: str, error: ModuleNotFoundError) -> MissingExtra:
    """Say which module a part lacks and how to get it."""
    return MissingExtra(f"rankrt {name} needs {error.name}: pip install '{EXTRAS[name].pip}'")
