"""Why it runs the way it does here: the host, the engine, the cache, and an artifact checked to the byte.

Every finding is a name, a verdict and a sentence; nothing is repaired.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from rankrt.artifact import Artifact, Variant, open_artifact
from rankrt.atomic import cache_folder
from rankrt.backends.ort import import_onnxruntime, installed_engines
from rankrt.errors import RankrtError
from rankrt.machine import this_machine
from rankrt.prepared import PreparedModels
from rankrt.reranker import Reranker
from rankrt.variants import choose

Verdict: TypeAlias = Literal["ok", "note", "fail"]

# Logits of this host against PyTorch's, which other kernels sum in another order; a wrong kernel is off by far more.
_SLACK = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return asdict(self)


def examine(folder: Path | None) -> Iterator[Finding]:
    """Look at the host, and at the artifact in a folder if one is given; findings come as they are made."""
    yield from _host()
    yield _checked("engine", _engine)
    yield _cache()
    if folder is not None:
        yield from _artifact(folder)


def _host() -> Iterator[Finding]:
    machine = this_machine()
    packages = ("rankrt", "numpy", "tokenizers", "msgspec")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    yield Finding(name="software", verdict="ok", detail=f"Python {platform.python_version()}, {versions}")
    instructions = " ".join(machine.instructions) or "none that matter"
    yield Finding(
        name="processor", verdict="ok", detail=f"{machine.processor} ({machine.architecture}): {instructions}"
    )
    yield Finding(name="threads", verdict="ok", detail=f"{machine.cores.n}, set by {machine.cores.limited_by}")


def _engine() -> str:
    ort = import_onnxruntime()
    names = ", ".join(f"{name} {version}" for name, version in installed_engines().items()) or "of unknown origin"
    return f"{names}; providers: {', '.join(ort.get_available_providers())}"


def _cache() -> Finding:
    entries = PreparedModels().entries()
    n_bytes = sum(size for _, size in entries)
    return Finding(
        name="cache", verdict="ok", detail=f"{cache_folder()}: {len(entries)} prepared models, {n_bytes / 1e9:.2f} GB"
    )


def _artifact(folder: Path) -> Iterator[Finding]:
    try:
        artifact = open_artifact(folder)
    except RankrtError as error:
        yield Finding(name="artifact", verdict="fail", detail=str(error))
        return
    yield Finding(name="artifact", verdict="ok", detail=f"{artifact.manifest.name}, identity {artifact.identity[:16]}")
    hashes = _checked("files", lambda: _hashes(artifact))
    yield hashes
    if hashes.verdict == "ok":
        yield _checked("choice", lambda: _choice(artifact))
        for variant in artifact.manifest.variants:
            yield _examples(artifact, variant)


def _choice(artifact: Artifact) -> str:
    machine = this_machine()
    speed = "multiplies bytes faster than floats" if machine.multiplies_bytes else "gains nothing from int8"
    return f"precision='auto' takes {choose(artifact, 'auto', machine).name} here: the processor {speed}"


def _hashes(artifact: Artifact) -> str:
    artifact.check_hashes(artifact.manifest.files)
    return f"{len(artifact.manifest.files)} files have the SHA-256 they were exported with"


def _examples(artifact: Artifact, variant: Variant) -> Finding:
    """Score the manifest's examples here and compare with what PyTorch answered where it was exported."""
    name, examples = variant.name, artifact.manifest.examples
    if not examples or variant.verification is None:
        return Finding(name=name, verdict="note", detail="was exported without verification: nothing to compare with")
    try:
        with Reranker.load(
            artifact.folder, precision=variant.precision, truncation="longest_first", prepare=False
        ) as reranker:
            logits = reranker.score([(example.query, example.passage) for example in examples])
    except RankrtError as error:
        return Finding(name=name, verdict="fail", detail=str(error))
    difference = float(np.abs(logits - np.array([example.logit for example in examples])).max())
    limit = max(_SLACK, 2 * variant.verification.max_difference)
    detail = f"{len(examples)} examples scored here differ from PyTorch by up to {difference:.1e} (limit {limit:.1e})"
    return Finding(name=name, verdict="ok" if difference <= limit else "fail", detail=detail)


def _checked(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, verdict="ok", detail=look())
    except RankrtError as error:
        return Finding(name=name, verdict="fail", detail=str(error))
