"""Which variant of an artifact runs where on this host: what was asked for, or, with "auto", the best there is.

Loads nothing. A refusal is a DeviceError that says why and what to do.
"""

import logging
from typing import Literal, TypeAlias

from rankrt.artifact.manifest import Artifact, InstructionSet, Precision, Target, Variant
from rankrt.backends.batch import GPU_BATCHES
from rankrt.backends.providers import gpu_for
from rankrt.errors import DeviceError
from rankrt.host import gpus
from rankrt.host.cpu import Machine
from rankrt.host.device import Device
from rankrt.loading.builds import Builds, build_command, built_for, find_build
from rankrt.loading.open import choose

Wanted: TypeAlias = Precision | Literal["auto"]

# What "auto" takes on a GPU, the first that is verified: fp16 is what its matrix units are made for. int8 comes behind
# both: it drifts more, and nobody has measured yet that it is faster. Others found XLM-R no faster than in fp16, as
# TensorRT did not fuse attention beside 8 bits (Model Optimizer's issue 59). Whoever measured it names it.
_PREFERRED: tuple[Precision, ...] = ("fp16", "fp32", "int8", "fp8", "w8", "int4")
# The compute capability from which on GPUs multiply 8-bit floats: Ada and Hopper.
_FP8_SINCE = (8, 9)
# Which way to a GPU "auto" tries first: flat rows without padding, then engines, which somebody has to have built.
_TARGETS: tuple[Target, ...] = ("cuda", "tensorrt")

_logger = logging.getLogger("rankrt")


def place(
    artifact: Artifact,
    device: Device | None,
    precision: Wanted,
    machine: Machine,
    instruction_set: InstructionSet | None = None,
) -> Variant:
    """Return the variant for a device; for None ("auto") that of a GPU if one is usable, else the CPU's.

    With an instruction set it is the CPU's.

    Raises DeviceError if what is asked for cannot be had here. A GPU that is there and not used is announced.
    """
    if device is not None and device.is_gpu:
        return choose_on_gpu(artifact, device, precision)
    if device is None and instruction_set is None and (found := _on_gpu_if_possible(artifact, precision)):
        return found
    return choose(artifact, precision, machine, instruction_set)


def choose_on_gpu(artifact: Artifact, device: Device, precision: Wanted, *, is_verified: bool = False) -> Variant:
    """Return the variant for a GPU: in that precision, or for "auto" a verified one; always one if `is_verified`.

    Verified is what the manifest says, or `rankrt build` on this host; TensorRT always needs the latter.
    """
    gpu_for(device)
    found = variants_for(artifact, device, precision)
    is_verified = is_verified or precision == "auto"
    usable = [variant for variant in found if _is_usable(artifact, variant, device, is_verified=is_verified)]
    if not usable:
        raise DeviceError(_not_built(artifact, found[0], device))
    return usable[0]


def variants_for(artifact: Artifact, device: Device, precision: Wanted) -> list[Variant]:
    """Return the variants for a GPU in that precision, or in all that it can compute in, best first.

    Raises DeviceError if there is none. What it cannot compute in and was not named is announced.
    """
    here = [v for v in artifact.manifest.variants if v.target == device.target and v.layout in GPU_BATCHES]
    if not (found := [variant for variant in here if precision in (variant.precision, "auto")]):
        raise DeviceError(_not_exported(artifact, device, precision))
    return sorted(_computable(found, device), key=lambda variant: _PREFERRED.index(variant.precision))


def _computable(variants: list[Variant], device: Device) -> list[Variant]:
    """Return those of the variants whose numbers a GPU multiplies. Raises DeviceError if there are none."""
    if all(variant.precision != "fp8" for variant in variants) or (gpu := gpu_for(device)).version >= _FP8_SINCE:
        return variants
    reason = f"needs a GPU of compute capability 8.9 or newer, {gpu.name} has {gpu.capability}"
    left_out = next(variant for variant in variants if variant.precision == "fp8")
    if not (others := [variant for variant in variants if variant.precision != "fp8"]):
        raise DeviceError(f"{left_out.name} {reason}; use another precision")
    _logger.warning("%s is left out: it %s", left_out.name, reason)
    return others


def device_of(variant: Variant, asked: Device | None) -> Device:
    """Return where a variant that was chosen runs."""
    return Device(variant.target, asked.index if asked and asked.is_gpu else 0)


def _on_gpu_if_possible(artifact: Artifact, precision: Wanted) -> Variant | None:
    """Return the variant for the first GPU, or None; if there is one that cannot be used, say why."""
    if not gpus.has_driver():
        return None
    exported = {variant.target for variant in artifact.manifest.variants}
    reasons: list[str] = []
    for target in [target for target in _TARGETS if target in exported] or [_TARGETS[0]]:
        try:
            return choose_on_gpu(artifact, Device(target), precision, is_verified=True)
        except DeviceError as error:
            reasons.append(str(error))
    _logger.warning("this host has an NVIDIA driver, but the CPU is used: %s", "; ".join(reasons))
    return None


def _is_usable(artifact: Artifact, variant: Variant, device: Device, *, is_verified: bool) -> bool:
    build = find_build(artifact, variant, device)
    if device.target == "tensorrt":
        return build is not None and (build.is_verified or not is_verified)
    return not is_verified or variant.verification is not None or (build is not None and build.is_verified)


def _not_exported(artifact: Artifact, device: Device, precision: Wanted) -> str:
    has = ", ".join(variant.name for variant in artifact.manifest.variants)
    asked = device.target if precision == "auto" else f"{device.target} in {precision}"
    return (
        f"{artifact.folder} has no variant for {asked}; it has {has}. Export one:"
        f" rankrt export {artifact.manifest.source.id} FOLDER --target {device.target}"
    )


def _not_built(artifact: Artifact, variant: Variant, device: Device) -> str:
    command = build_command(artifact.folder, device)
    key = built_for(artifact, variant, device)
    if (build := Builds().find(key)) is not None and not build.is_verified:
        return (
            f"{variant.name} was built here, but its artifact has no examples to verify it with; name the precision:"
            f" '{variant.precision}'"
        )
    if (other := Builds().like(key)) is not None:
        return f"{variant.name} was built for something else ({key.differences(other.built_for)}). Build it: {command}"
    if device.target == "tensorrt":
        return f"{variant.name} has no engines here, and none is built while somebody waits. Build them: {command}"
    return f"{variant.name} was never verified, as the host that exported it had no GPU. Verify it here: {command}"
