"""The parts of rankrt that are installed apart: which module each command begins at, and what brings it.

They are imported by name and only when they are needed, so that scoring needs none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rankrt.errors import MissingExtra


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A part of rankrt: the command that it brings, the module of that command, and what installs it."""

    help: str
    module: str
    pip: str


EXTRAS = {
    "export": Extra(
        help="Turn a Hugging Face checkpoint into an artifact.", module="rankrt_export.cli", pip="rankrt[cpu,export]"
    ),
    "serve": Extra(
        help="Answer rerank requests over HTTP, in the dialect of each client.",
        module="rankrt.server.cli",
        pip="rankrt[cpu,server]",
    ),
    "mine": Extra(
        help="Find hard negatives in a corpus.", module="rankrt_finetune.cli.mine", pip="rankrt[cpu,finetune]"
    ),
    "teach": Extra(
        help="Add a reranker's scores to examples to train with.",
        module="rankrt_finetune.cli.teach",
        pip="rankrt[cpu,finetune]",
    ),
    "finetune": Extra(
        help="Fine-tune a reranker on your own examples.",
        module="rankrt_finetune.cli.finetune",
        pip="rankrt[cpu,finetune]",
    ),
    "evaluate": Extra(
        help="Measure rerankers on judged data, side by side.",
        module="rankrt_finetune.cli.evaluate",
        pip="rankrt[cpu,evaluate]",
    ),
    "calibrate": Extra(
        help="Fit a map from scores to probabilities to labelled pairs.",
        module="rankrt_finetune.cli.calibrate",
        pip="rankrt[cpu,finetune]",
    ),
}
_EXPORTER = "rankrt_export.pipeline"


def exporter() -> Callable[..., None]:
    """Return the function that exports a checkpoint. Raises MissingExtra if it is not installed."""
    export: Callable[..., None] = load("export", _EXPORTER).export_into
    return export


def load(name: str, module: str) -> Any:
    """Import a module of a part. Raises MissingExtra, with the pip command, if something of it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing(name, error) from error


def missing(name: str, error: ModuleNotFoundError) -> MissingExtra:
    """Say which module a part lacks and how to get it."""
    return MissingExtra(f"rankrt {name} needs {error.name}, which is not installed: pip install '{EXTRAS[name].pip}'")
