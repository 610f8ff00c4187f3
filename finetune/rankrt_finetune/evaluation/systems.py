"""Which systems an evaluation has: a row for each model, precision and way of ranking.

Everything that can be refused is refused here, before anything is scored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankrt.artifact.manifest import MANIFEST
from rankrt.artifact.source import local_folder
from rankrt.errors import InputError
from rankrt.options import LoadOptions
from rankrt_finetune.evaluation.artifacts import RankrtSystem, Wanted, artifact_systems
from rankrt_finetune.evaluation.checkpoints import checkpoint_system
from rankrt_finetune.evaluation.rankings import System

# Names a checkpoint that PyTorch runs, where a Hub id alone would be run by rankrt.
TORCH = "torch:"


def systems_of(sources: Sequence[str], wanted: Wanted, options: LoadOptions, rules: Mapping[str, Any]) -> list[System]:
    """Return a system for each row: each model in the order given, its precisions, then its ways of ranking.

    A folder with a rankrt.json is an artifact; another folder is a checkpoint, and so is a name after "torch:". A Hub
    id is what `Reranker.load` takes it for.
    """
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise InputError(f"{twice[0]} is given twice. Leave one of them out")
    found: list[System] = []
    for source, label in zip(sources, _labels(sources), strict=True):
        if (checkpoint := _checkpoint(source)) is not None:
            found.append(checkpoint_system(checkpoint, label, options, rules))
        else:
            found += artifact_systems(source, label, wanted, options, rules)
    ours = [system for system in found if isinstance(system, RankrtSystem)]
    if wanted.refine is not None and not any(system.refine for system in ours):
        raise InputError(f"refine={wanted.refine!r} adds no row: no other precision is evaluated. Leave it out")
    if wanted.progressive is not False and not any(system.progressive for system in ours):
        raise InputError("progressive needs a layerwise model, and none of these is one. Leave it out")
    if wanted.cutoff_layers and not any(system.cutoff_layer for system in ours):
        raise InputError("cutoff_layers are for layerwise models, and none of these is one. Leave it out")
    return found


def _labels(sources: Sequence[str]) -> list[str]:
    """Return the last part of each name, or the whole of one whose last part others have too."""
    whole = [source.removeprefix(TORCH).rstrip("/") for source in sources]
    short = [Path(name).name or name for name in whole]
    return [last if short.count(last) == 1 else name for last, name in zip(short, whole, strict=True)]


def _checkpoint(source: str) -> str | None:
    """Return the checkpoint that a source names, or None if it is for rankrt."""
    if source.startswith(TORCH):
        return source.removeprefix(TORCH)
    folder = local_folder(source)
    return source if folder is not None and not (folder / MANIFEST).exists() else None
