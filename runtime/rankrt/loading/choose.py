"""Which variant of an artifact runs where on this host: what was asked for, or, with "auto", the best there is.

Loads nothing. A refusal is a DeviceError that says why and what to do.
"""

import logging
from typing import Literal, TypeAlias

from rankrt.artifact.manifest import Artifact, InstructionSet, Precision, Variant
from rankrt.artifact.precisions import TARGETS, rank
from rankrt.backends.batch import GPU_BATCHES
from rankrt.backends.providers import gpu_for
from rankrt.errors import DeviceError
from rankrt.host import gpus
from rankrt.host.cpu import Machine
from rankrt.host.device import Device
from rankrt.loading.builds import Builds, build_command, built_for, find_build
from rankrt.loading.open import choose

Wanted: TypeAlias = Precision | Literal["auto"]

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
    return sorted(_computable(found, device), key=lambda variant: rank(variant.precision, device.target))


def _computable(variants: list[Variant], device: Device) -> list[Variant]:
    """Return those of the variants whose numbers a GPU multiplies. Raises DeviceError if there are none."""
    if not any(variant.key.row.least_capability > (0, 0) for variant in variants):
        return variants
    gpu = gpu_for(device)
    others = [variant for variant in variants if variant.key.row.least_capability <= gpu.version]
    for left_out in [variant for variant in variants if variant not in others]:
        least = ".".join(map(str, left_out.key.row.least_capability))
        reason = f"needs a GPU of compute capability {least} or newer, {gpu.name} has {gpu.capability}"
        if not others:
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
    gpu_targets = [target for target, row in TARGETS.items() if row.is_gpu]
    reasons: list[str] = []
    for target in [target for target in gpu_targets if target in exported] or gpu_targets[:1]:
        try:
            return choose_on_gpu(artifact, Device(target), precision, is_verified=True)
        except DeviceError as error:
            reasons.append(str(error))
    _logger.warning("this host has an NVIDIA driver, but the CPU is used: %s", "; ".join(reasons))
    return None


def _is_usable(artifact: Artifact, variant: Variant, device: Device, *, is_verified: bool) -> bool:
    build = find_build(artifact, variant, device)
    if TARGETS[device.target].builds_engines:
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
    if TARGETS[device.target].builds_engines:
        return f"{variant.name} has no engines here, and none is built while somebody waits. Build them: {command}"
    return f"{variant.name} was never verified, as the host that exported it had no GPU. Verify it here: {command}"
