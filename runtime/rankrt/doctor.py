"""Why it runs the way it does here: the host, the engine, the cache, and an artifact checked to the byte.

Every finding is a name, a verdict and a sentence; nothing is repaired.
"""

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rankrt.artifact import Artifact, Variant, open_artifact
from rankrt.atomic import cache_folder
from rankrt.backends.ort import import_onnxruntime, installed_engines
from rankrt.builds import drift_limit
from rankrt.devices import Device
from rankrt.errors import RankrtError
from rankrt.finding import Finding, checked
from rankrt.gpu_doctor import examine_gpu, examine_variant
from rankrt.gpus import has_driver
from rankrt.machine import Machine, this_machine
from rankrt.placement import place
from rankrt.prepared import PreparedModels
from rankrt.reranker import Reranker


def examine(folder: Path | None, device: Device | None = None) -> Iterator[Finding]:
    """Look at the host, and at the artifact in a folder if one is given; findings come as they are made.

    With a GPU's device that GPU is looked at as well, and the artifact's variants for it instead of those for the CPU.
    """
    on = device or Device("cpu")
    yield from _host()
    yield checked("engine", _engine)
    yield _cache()
    if on.is_gpu:
        yield from examine_gpu(on)
    elif has_driver():
        yield Finding(name="gpu", verdict="note", detail="an NVIDIA driver is here; examine it with --device cuda")
    if folder is not None:
        yield from _artifact(folder, on)


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


def _artifact(folder: Path, device: Device) -> Iterator[Finding]:
    try:
        artifact = open_artifact(folder)
    except RankrtError as error:
        yield Finding(name="artifact", verdict="fail", detail=str(error))
        return
    yield Finding(name="artifact", verdict="ok", detail=f"{artifact.manifest.name}, identity {artifact.identity[:16]}")
    hashes = checked("files", lambda: _hashes(artifact))
    yield hashes
    if hashes.verdict != "ok":
        return
    yield checked("choice", lambda: _choice(artifact, device))
    for variant in artifact.manifest.variants:
        if variant.target != device.target:
            detail = f"runs on another device; examine it with --device {variant.target}"
            yield Finding(name=variant.name, verdict="note", detail=detail)
            continue
        if device.is_gpu:
            yield from examine_variant(artifact, variant, device)
        yield _examples(artifact, variant, device)


def _choice(artifact: Artifact, device: Device) -> str:
    machine = this_machine()
    chosen = place(artifact, device, "auto", machine).name
    if device.is_gpu:
        return f"precision='auto' takes {chosen} on {device}"
    return f"precision='auto' takes {chosen} here: the processor {_products_of_bytes(machine)}"


def _products_of_bytes(machine: Machine) -> str:
    if not machine.multiplies_bytes:
        return "gains nothing from int8"
    bits = 32 if machine.instruction_sets[0] == "vnni" else 16
    return f"multiplies bytes faster than floats, and adds the products in {bits} bits"


def _hashes(artifact: Artifact) -> str:
    artifact.check_hashes(artifact.manifest.files)
    return f"{len(artifact.manifest.files)} files have the SHA-256 they were exported with"


def _examples(artifact: Artifact, variant: Variant, device: Device) -> Finding:
    """Score the manifest's examples here and compare with what PyTorch answered where it was exported."""
    name, examples = variant.name, artifact.manifest.examples
    if not examples or (variant.verification is None and not device.is_gpu):
        return Finding(name=name, verdict="note", detail="was exported without verification: nothing to compare with")
    try:
        with Reranker.load(
            artifact.folder,
            device=str(device),
            precision=variant.precision,
            instruction_set=variant.instruction_set,
            truncation="longest_first",
            prepare=False,
        ) as reranker:
            logits = reranker.score([(example.query, example.passage) for example in examples])
    except RankrtError as error:
        return Finding(name=name, verdict="fail", detail=str(error))
    difference = float(np.abs(logits - np.array([example.logit for example in examples])).max())
    limit = drift_limit(variant)
    detail = f"{len(examples)} examples scored here differ from PyTorch by up to {difference:.1e} (limit {limit:.1e})"
    return Finding(name=name, verdict="ok" if difference <= limit else "fail", detail=detail)
