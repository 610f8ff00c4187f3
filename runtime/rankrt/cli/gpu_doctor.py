"""What a GPU needs, and what of it is here: driver, wheels, libraries. And how a variant really runs."""

import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import TARGETS
from rankrt.backends.gpu import GpuBackend, placements
from rankrt.backends.planner import GPU_RUN_TOKENS
from rankrt.backends.providers import (
    PROVIDERS,
    cuda_version,
    gpu_for,
    library_versions,
    missing_libraries,
    tensorrt_library,
)
from rankrt.backends.session import import_onnxruntime
from rankrt.cli.finding import Finding, Verdict, checked
from rankrt.errors import DeviceError
from rankrt.host import gpus
from rankrt.host.child import child_command
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import place_variant
from rankrt.loading.open import open_gpu
from rankrt.loading.placement import Placement
from rankrt.loading.prepared import differences, find_record_like, key_of, prepare_command
from rankrt.text.pairs import Encoded

_WHEEL = re.compile(r"onnxruntime(-gpu)?|nvidia-.+|tensorrt.*")
# The CUDA release that a wheel is made for; from CUDA 13 on most wheels say it by their own version instead.
_NAMED_CUDA = re.compile(r"-cu(\d+)\b")
_VERSIONED_BY_CUDA = ("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")
# Four full runs, of rows of the usual length, show how much memory is taken.
_MEMORY_TOKENS, _MEMORY_ROW_TOKENS = 4 * GPU_RUN_TOKENS, 512
# ONNX Runtime's line for each attention node that runs.
_KERNEL = re.compile(r"Operator=(\S+).*?SdpaKernel=(\w+)")
_EXAMPLE = ("what is a kernel?", "A kernel is a program that runs on the many cores of a GPU at once.")


def examine_gpu(device: Device) -> Iterator[Finding]:
    """Look at what a device needs: the driver, the GPU, wheels that go together, libraries that load."""
    yield checked("driver", _driver)
    yield checked("gpu", lambda: str(gpu_for(device, this_host())))
    yield _wheels(device)
    yield checked("libraries", lambda: _libraries(device))


def examine_variant(artifact: Artifact, variant: Variant, device: Device) -> Iterator[Finding]:
    """Examine a variant on a device: its record, where its nodes run, and the kernel of its attention."""
    host = this_host()

    def placed() -> Placement:
        return place_variant(artifact, variant, device, host)

    yield checked("build", lambda: _build(placed()))
    nodes = checked("nodes", lambda: _nodes(placed()))
    yield nodes
    if nodes.verdict != "ok":
        return
    yield checked("memory", lambda: _memory(placed()))
    if device.target == "cuda":
        yield _attention(placed())


def misfits(wheels: Mapping[str, str], cuda: int | None, tensorrt: int | None) -> list[str]:
    """Return which wheels do not fit an onnxruntime built for these major versions, in words."""
    found = []
    if {"onnxruntime", "onnxruntime-gpu"} <= wheels.keys():
        found.append("onnxruntime and onnxruntime-gpu write the same files: uninstall both, install one")
    for name, version in wheels.items():
        named, major = _NAMED_CUDA.search(name), int(version.partition(".")[0])
        made_for = int(named[1]) if named else major if name in _VERSIONED_BY_CUDA else None
        if cuda is not None and made_for is not None and made_for != cuda:
            found.append(f"{name} {version} is for CUDA {made_for}, onnxruntime-gpu for CUDA {cuda}")
        if tensorrt is not None and name.startswith("tensorrt") and major != tensorrt:
            found.append(f"{name} {version} is not TensorRT {tensorrt}, which onnxruntime-gpu links")
    return found


def kernels_of(output: str) -> list[tuple[str, str]]:
    """Return attention operators and their kernels, each once, from what ONNX Runtime prints."""
    return sorted(set(_KERNEL.findall(output)))


def _driver() -> str:
    found = gpus.find_gpus()
    if found.reason is not None:
        raise DeviceError(found.reason)
    newest = "unknown" if found.cuda is None else ".".join(map(str, found.cuda))
    return f"{found.driver or 'of unknown version'}, runs CUDA up to {newest}; {len(found.found)} GPUs are visible"


def _wheels(device: Device) -> Finding:
    named = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    wheels = {name: version for name, version in sorted(named.items()) if _WHEEL.fullmatch(name)}
    cuda = cuda_version(import_onnxruntime())
    library = tensorrt_library()
    tensorrt = int(library.rpartition(".")[2]) if library else None
    wrong = misfits(wheels, cuda[0] if cuda else None, tensorrt if TARGETS[device.target].builds_engines else None)
    listed = ", ".join(f"{name} {version}" for name, version in wheels.items()) or "none"
    built = f"built for CUDA {cuda[0]}.{cuda[1]}" if cuda else "built without CUDA"
    links = f" and TensorRT {tensorrt}" if tensorrt else ""
    detail = "; ".join([f"onnxruntime was {built}{links}; installed: {listed}", *wrong])
    return Finding(name="wheels", verdict="ok" if cuda and not wrong else "fail", detail=detail)


def _libraries(device: Device) -> str:
    if missing := missing_libraries(device.target):
        raise DeviceError(f"missing: {'; '.join(missing)}")
    return ", ".join(f"{name} {version}" for name, version in library_versions(device.target).items()) or "none needed"


def _build(placement: Placement) -> str:
    variant, found = placement.variant, placement.record
    if found is None:
        if not TARGETS[placement.device.target].builds_engines and variant.verification is not None:
            return "verified where it was exported; nothing was prepared here, and nothing has to be"
        key = key_of(placement)
        other = find_record_like(key)
        why = f" (there is one with {differences(other.key, key)})" if other else ""
        raise DeviceError(f"{variant.name} was not prepared on this host{why}: {prepare_command(placement)}")
    rows = "rows of any length" if found.max_length is None else f"rows of up to {found.max_length} tokens"
    return f"for {rows}; {found.n_examples} examples differed by up to {found.max_difference:.1e} when it was prepared"


def _nodes(placement: Placement) -> str:
    name, wanted = placement.variant.name, PROVIDERS[placement.device.target].name
    with _opened(placement) as backend:
        counts = [placements(found.session) for found in backend.sessions]
    if elsewhere := sorted({provider for count in counts for provider in count} - {wanted}):
        raise DeviceError(f"some nodes of {name} run on {', '.join(elsewhere)} instead of {wanted}")
    return f"all {sum(count[wanted] for count in counts)} nodes of {name} run on {wanted}"


def _memory(placement: Placement) -> str:
    """Load, and score as many of the longest rows as keep two runs in flight for a while."""
    index = placement.device.index
    before = gpus.used_bytes(index)
    with _opened(placement) as backend:
        length = min(placement.artifact.manifest.max_length, backend.capacity.longest_row or _MEMORY_ROW_TOKENS)
        rows = [np.zeros(length, np.int32)] * max(1, _MEMORY_TOKENS // length)
        backend.logits(Encoded.of_rows(rows))
        after = gpus.used_bytes(index)
    if before is None or after is None:
        return "the driver does not say how much is used"
    return f"{(after - before) / 1e9:.2f} GB taken by loading and by runs of rows of {length} tokens"


@contextmanager
def _opened(placement: Placement) -> Iterator[GpuBackend]:
    backend = open_gpu(placement)
    try:
        yield backend
    finally:
        backend.close()


def _attention(placement: Placement) -> Finding:
    """Score in another process that prints the kernels. ONNX Runtime reads that setting once a process."""
    process = subprocess.run(
        child_command(
            "rankrt.cli.main",
            "score",
            str(placement.artifact.folder),
            "-",
            "--device",
            str(placement.device),
            "--precision",
            placement.variant.precision,
        ),
        input=json.dumps({"query": _EXAMPLE[0], "passage": _EXAMPLE[1]}),
        env={**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        return Finding(name="attention", verdict="fail", detail=process.stderr.strip())
    kernels = kernels_of(process.stdout)
    listed = ", ".join(f"{operator} by {kernel}" for operator, kernel in kernels)
    used = {kernel for _, kernel in kernels}
    # Beside whole rows, which are packed, layers may see a window: by a mask, which flash attention does not take.
    of_rows = {kernel for operator, kernel in kernels if operator == "PackedMultiHeadAttention"} or used
    # Not cuDNN's, which calls itself CUDNN_FLASH_ATTENTION.
    is_flash = of_rows == {"FLASH_ATTENTION"} and used <= {"FLASH_ATTENTION", "EFFICIENT_ATTENTION"}
    # ONNX Runtime has flash kernels in half precision, from compute capability 8.0 on.
    is_half, gpu = placement.variant.precision == "fp16", placement.gpu
    has_flash = is_half and gpu is not None and gpu.version >= (8, 0)
    verdict: Verdict = "ok" if is_flash else "fail" if has_flash and used else "note"
    return Finding(name="attention", verdict=verdict, detail=listed or "plain operators, no kernel for it")
