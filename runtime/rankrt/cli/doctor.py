"""Why it runs the way it does here: the host, the libraries, the cache, and an artifact checked to the byte.

Every finding is a name, a verdict and a sentence; nothing is repaired.
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from rankrt.artifact.manifest import Artifact, Variant, open_artifact
from rankrt.artifact.precisions import PRECISIONS
from rankrt.backends.openvino import openvino_version, why_not_bf16
from rankrt.backends.session import import_onnxruntime, installed_builds
from rankrt.cli.arguments import Command, file_argument, option
from rankrt.cli.finding import Finding, checked
from rankrt.cli.gpu_doctor import examine_gpu, examine_variant
from rankrt.errors import CacheError, DeviceError, InputError, RankrtError
from rankrt.files.cache import HostCache
from rankrt.files.rights import this_user
from rankrt.host.cpu import Machine, this_machine
from rankrt.host.device import Device
from rankrt.host.gpus import has_driver
from rankrt.host.host import this_host
from rankrt.loading.choose import Asked, place, place_variant
from rankrt.loading.kernels import these_kernels
from rankrt.loading.prepared import drift_limit, find_record, key_of
from rankrt.reranker import Reranker

if sys.platform != "win32":
    import resource

_TELEMETRY, _TRUE = "ORT_DISABLE_TELEMETRY", ("1", "true", "yes", "on")


def examine(folder: Path | None, device: Device | None = None) -> Iterator[Finding]:
    """Look at the host, and at the artifact in a folder if one is given; findings come as they are made.

    With a GPU's device that GPU is looked at as well, and the artifact's variants for it instead of those for the CPU.
    """
    on = device or Device("cpu")
    yield from _host()
    yield checked("onnxruntime", _onnxruntime)
    yield _telemetry()
    yield _limits()
    yield from _cache()
    if not on.is_gpu:
        yield checked("kernels", _kernels)
        yield _brain_floats()
    if on.target == "tensorrt":
        detail = "TensorRT is experimental; compare its scores with the CPU's before you rely on them"
        yield Finding(name="tensorrt", verdict="note", detail=detail)
    if on.is_gpu:
        yield from examine_gpu(on)
    elif has_driver():
        yield Finding(name="gpu", verdict="note", detail="an NVIDIA driver is here; examine it with --device cuda")
    if folder is not None:
        yield from _artifact(folder, on)


@click.command("doctor", cls=Command)
@file_argument("artifact", type=Path, required=False, help="An artifact's folder, to check every byte of it.")
@option(
    "--device",
    default="cpu",
    metavar="D",
    help="GPU to examine as well: cuda, tensorrt, or cuda:1. TensorRT is experimental.",
)
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(artifact: Path | None, device: str, as_json: bool) -> int:
    """Print the findings. Return 1 if something is wrong, else 0."""
    findings: list[Finding] = []
    for finding in examine(artifact, Device.parse(device)):
        findings.append(finding)
        if not as_json:
            print(f"{finding.verdict:>4}  {finding.name:<10} {finding.detail}", flush=True)
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], ensure_ascii=False))
    return int(any(finding.verdict == "fail" for finding in findings))


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


def _onnxruntime() -> str:
    ort = import_onnxruntime()
    names = ", ".join(f"{name} {version}" for name, version in installed_builds().items()) or "of unknown origin"
    return f"{names}; providers: {', '.join(ort.get_available_providers())}"


def _kernels() -> str:
    """Say in which precisions rankrt's own kernels compute here."""
    kernels, machine = these_kernels(), this_machine()
    precisions: dict[str | None, list[str]] = {}
    for name, row in PRECISIONS.items():
        if "kernels" in row.instruction_sets:
            precisions.setdefault(kernels.why_not_first(name, machine), []).append(name)
    facts = [
        f"ONNX Runtime's go before rankrt's own for {' and '.join(names)}: {reason}"
        for reason, names in precisions.items()
        if reason is not None
    ]
    if None in precisions:
        forced = ", as RANKRT_KERNELS says" if kernels.is_forced else ""
        facts.insert(0, f"rankrt's own for {' and '.join(precisions[None])}, by {kernels.instruction_set}{forced}")
    return "; ".join(facts)


def _brain_floats() -> Finding:
    """Say by which instructions OpenVINO would compute bf16 here, and whether it is installed."""
    found, openvino = this_machine().multiplies_bf16, openvino_version()
    if found is None:
        detail = "this processor has neither AMX (amx_bf16) nor AVX-512 BF16 (avx512_bf16), so bf16 is not used"
        return Finding(name="bf16", verdict="ok", detail=detail)
    facts = [f"by {found}"]
    if found != "AMX":
        facts.append("it is faster than fp32 on AMD's processors and slower on Intel's without AMX")
    if openvino is None:
        facts.append("OpenVINO is not installed: pip install 'rankrt[cpu,openvino]'")
    else:
        facts.append(f"openvino {openvino}; rankrt prepare ARTIFACT measures it")
    return Finding(name="bf16", verdict="ok", detail="; ".join(facts))


def _cache() -> Iterator[Finding]:
    """Look at the cache and read every entry whole."""
    try:
        cache = HostCache()
        items = cache.items()
    except CacheError as error:
        yield Finding(name="cache", verdict="note", detail=f"none, so loading takes longer: {error}")
        return
    except InputError as error:
        yield Finding(name="cache", verdict="fail", detail=str(error))
        return
    size = sum(item.n_bytes for item in items) / 1e9
    limit = "no limit" if cache.limit is None else f"limit {cache.limit / 1e9:.2f} GB"
    n_entries = sum(item.state == "ready" for item in items)
    waste = [item for item in items if item.is_waste and item.n_bytes]
    facts = [f"{cache.folder}: {n_entries} entries, {size:.2f} GB, {limit}"]
    if not cache.is_writable:
        facts.append(f"{this_user()} cannot write it")
    if waste:
        facts.append(f"{sum(item.n_bytes for item in waste) / 1e9:.2f} GB are of no use here: rankrt cache prune")
    unreadable = [item.remark for item in items if item.state == "unreadable"]
    is_sound = cache.is_writable and not unreadable
    yield Finding(name="cache", verdict="ok" if is_sound else "note", detail="; ".join([*facts, *unreadable]))
    for item, problem in cache.damaged():
        detail = f"{item.path} is damaged: {problem}. Remove it: rankrt cache prune"
        yield Finding(name="cache", verdict="fail", detail=detail)


def _limits() -> Finding:
    """Say how many files and connections a process may have open here."""
    if sys.platform == "win32":
        detail = "this system does not limit the open files of a process"
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        of_shell, most = (str(n) if n != resource.RLIM_INFINITY else "unlimited" for n in (soft, hard))
        detail = f"{of_shell} open files, {most} at most"
    return Finding(name="limits", verdict="ok", detail=detail)


def _telemetry() -> Finding:
    """Say whether ONNX Runtime may report to its maker, as it does from 1.29 on unless it is told not to."""
    value = os.environ.get(_TELEMETRY)
    if value is not None and value.lower() in _TRUE:
        return Finding(name="telemetry", verdict="ok", detail=f"off ({_TELEMETRY}={value})")
    is_set = f"is {value!r}" if value else "is not set"
    detail = f"{_TELEMETRY} {is_set}, so ONNX Runtime reports to its maker. Turn it off: {_TELEMETRY}=1"
    return Finding(name="telemetry", verdict="note", detail=detail)


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
        if (reason := _why_not_here(variant)) is not None:
            yield Finding(name=variant.name, verdict="note", detail=f"cannot run here: {reason}")
            continue
        if variant.key.is_for_openvino:
            yield _measured(artifact, variant)
        yield _examples(artifact, variant, device)


def _why_not_here(variant: Variant) -> str | None:
    """Return what a variant for the CPU lacks on this host; None if it runs."""
    if variant.key.needs_kernels:
        try:
            return these_kernels().why_not
        except DeviceError as error:
            return str(error)
    return why_not_bf16(this_machine()) if variant.key.is_for_openvino else None


def _measured(artifact: Artifact, variant: Variant) -> Finding:
    """Say how fast a variant is here that "auto" takes only if it was measured."""
    record = find_record(key_of(place_variant(artifact, variant, Device("cpu"), this_host())))
    if record is None:
        detail = f"was not measured here, so precision='auto' does not take it: rankrt prepare {artifact.folder}"
        return Finding(name=variant.name, verdict="note", detail=detail)
    return Finding(name=variant.name, verdict="ok", detail=f"takes {record.relative_time:.2f} of fp32's time here")


def _choice(artifact: Artifact, device: Device) -> str:
    host = this_host()
    chosen = place(artifact, Asked(device=device), host).variant
    if device.is_gpu:
        return f"precision='auto' takes {chosen.name} on {device}"
    if chosen.key.needs_kernels:
        return f"precision='auto' takes {chosen.name} here, with rankrt's kernels for {these_kernels().instruction_set}"
    return f"precision='auto' takes {chosen.name} here: the processor {_products_of_bytes(host.machine)}"


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
    may_be_unverified = device.is_gpu or variant.key.is_for_openvino  # the exporting host could not run it
    if not examples or (variant.verification is None and not may_be_unverified):
        return Finding(name=name, verdict="note", detail="was exported without verification: nothing to compare with")
    try:
        with Reranker.load(
            artifact.folder,
            device=str(device),
            precision=variant.precision,
            instruction_set=variant.key.asked_set,
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
