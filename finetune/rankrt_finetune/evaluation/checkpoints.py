"""Checkpoints in PyTorch as systems of an evaluation. PyTorch is imported when one is loaded."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.artifact.manifest import MANIFEST
from rankrt.artifact.source import local_folder
from rankrt.errors import InputError, MissingExtra
from rankrt.host.device import AUTO
from rankrt.options import LoadOptions
from rankrt.text.options import DEFAULT_LENGTH, Rules
from rankrt_finetune.evaluation.rankings import BLOCK_PAIRS, Asked, Rank, Ranked, split

# The rules that a checkpoint follows as well: sentence-transformers cuts the longer text first, whatever is asked.
_OF_TORCH = ("max_length", "truncation")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSystem:
    """A checkpoint in PyTorch, by sentence-transformers' CrossEncoder in fp32. Its scores are logits, as rankrt's.

    Rows have 512 tokens or the model's limit, unless `max_length` says otherwise, as for rankrt.
    """

    label: str
    source: str
    max_length: int | None
    device: str | None
    n_threads: int | None
    weights: str
    block_pairs: int = BLOCK_PAIRS

    @property
    def name(self) -> str:
        """The checkpoint."""
        return f"{self.label} PyTorch"

    @property
    def identity(self) -> Mapping[str, str]:
        """The weights, the length and the programs."""
        programs = ("sentence-transformers", "transformers", "torch")
        return {
            "checkpoint": self.source,
            "weights": self.weights,
            "max_length": str(self.max_length),
            "device": str(self.device),
            "programs": ", ".join(f"{name} {version(name)}" for name in programs),
        }

    @contextmanager
    def open(self) -> Iterator[Rank]:
        """Load the model on the device; by default on a GPU if PyTorch sees one."""
        import torch
        from sentence_transformers import CrossEncoder

        n_threads = torch.get_num_threads()
        torch.set_num_threads(self.n_threads or n_threads)
        model = CrossEncoder(self.source, device=self.device, model_kwargs={"dtype": torch.float32})
        model.max_seq_length = self.max_length or min(DEFAULT_LENGTH, model.max_seq_length or DEFAULT_LENGTH)

        def rank(asked: Sequence[Asked]) -> list[Ranked]:
            pairs = [(one.query, document) for one in asked for document in one.documents]
            logits = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False) if pairs else []
            return split(np.asarray(logits, np.float32), None, asked)

        if (n_labels := model.config.num_labels) != 1:
            raise InputError(f"{self.source} gives {n_labels} scores for a pair; a reranker gives one")
        try:
            yield rank
        finally:
            torch.set_num_threads(n_threads)


def checkpoint_system(source: str, label: str, options: LoadOptions, rules: Mapping[str, Any]) -> TorchSystem:
    """Return a checkpoint, by its folder or its Hub id, as a system.

    Raises MissingExtra without sentence-transformers, and InputError for what cannot be scored so.
    """
    if find_spec("sentence_transformers") is None:
        raise MissingExtra(
            f"{source} is a checkpoint, which sentence-transformers runs: pip install 'rankrt[cpu,finetune]'. Or export"
            f" it first: rankrt export {source} ./{Path(source).name}.rk"
        )
    for field in fields(Rules):
        if field.name not in _OF_TORCH and rules.get(field.name, field.default) != field.default:
            raise InputError(
                f"{field.name}={rules[field.name]!r:.80} is for artifacts, but {source} is a checkpoint, which"
                " sentence-transformers runs without it. Leave one of them out"
            )
    folder = local_folder(source)
    if folder is not None:
        _check_head(folder)
    return TorchSystem(
        label=label,
        source=source,
        max_length=rules.get("max_length"),
        device=None if options.device == AUTO else options.device.replace("tensorrt", "cuda"),
        n_threads=options.n_threads,
        weights=source if folder is None else _weights_of(folder),
    )


def _check_head(folder: Path) -> None:
    """Raise InputError for a checkpoint that sentence-transformers would give a head of random numbers."""
    if (folder / "modules.json").exists():
        return
    try:
        architectures = json.loads((folder / "config.json").read_bytes()).get("architectures") or []
    except FileNotFoundError as error:
        raise InputError(f"{folder} is neither an artifact ({MANIFEST}) nor a checkpoint (config.json)") from error
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(
            f"{folder} is a checkpoint of {', '.join(architectures) or 'no known class'}. sentence-transformers would"
            " give it a head of random numbers. Export it with rankrt export, and evaluate the artifact"
        )


def _weights_of(folder: Path) -> str:
    """Return the digest of a checkpoint's weights, as the manifest of an export has it."""
    from rankrt_export.checkpoint.weights import hashed_in_background, open_weights

    with hashed_in_background(open_weights(folder)) as digest:
        return digest.result()
