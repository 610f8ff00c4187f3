"""Which variant of an artifact runs where on this host: what was asked for, or, with "auto", the best there is.

Loads nothing. What precisions and targets are, and which goes first, is in `artifact.precisions`. A refusal is a
DeviceError that says why and what to do.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import PRECISIONS, TARGETS, AskedSet, InstructionSet, Precision, Target, rank
from rankrt.backends.batch import GPU_BATCHES
from rankrt.backends.providers import gpu_for
from rankrt.errors import DeviceError
from rankrt.host.cpu import Machine
from rankrt.host.device import Device
from rankrt.host.gpus import Gpu
from rankrt.host.host import Host
from rankrt.loading.kernels import NO_KERNELS, Kernels, these_kernels
from rankrt.loading.placement import Placement
from rankrt.loading.prepared import differences, find_record, find_record_like, key_of, prepare_command

Wanted: TypeAlias = Precision | Literal["auto"]

_GPU_TARGETS: tuple[Target, ...] = tuple(target for target, row in TARGETS.items() if row.is_gpu)

_logger = logging.getLogger("rankrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A device, None for "auto", a precision, and what a graph on a CPU is made for, as the caller asked."""

    device: Device | None = None
    precision: Wanted = "auto"
    instruction_set: AskedSet | None = None


def place(artifact: Artifact, asked: Asked, host: Host) -> Placement:
    """Return the variant for the device that is asked for; for None that of a GPU if one is usable, else the CPU's.

    If it says what a graph is made for, the CPU's. A GPU that is there and not used is announced. Raises DeviceError if
    what is asked for cannot be had here.
    """
    if asked.device is not None and asked.device.is_gpu:
        placements = place_on_gpu(artifact, asked.device, asked.precision, host)
        return _first_usable(placements, must_be_verified=asked.precision == "auto")
    may_be_gpu = asked.device is None and asked.instruction_set is None and host.has_driver
    if may_be_gpu and (found := _on_gpu_if_possible(artifact, asked.precision, host)):
        return found
    faster = measured_faster(artifact, host) if asked.precision == "auto" else ()
    variant = choose(artifact, asked.precision, host.machine, asked.instruction_set, faster, these_kernels())
    return Placement(artifact=artifact, variant=variant, device=Device("cpu"), host=host)


def measured_faster(artifact: Artifact, host: Host) -> Collection[str]:
    """Return the names of the variants that `rankrt prepare` verified on this processor and found faster than fp32."""
    here = (Placement(artifact=artifact, variant=v, device=Device("cpu"), host=host) for v in measurable(artifact))
    records = {placement.variant.name: find_record(key_of(placement)) for placement in here}
    return {name for name, record in records.items() if record and record.is_verified and record.is_faster}


def measurable(artifact: Artifact) -> list[Variant]:
    """Return the variants for a processor that "auto" takes only after they were measured there."""
    return [v for v in artifact.manifest.variants if v.target == "cpu" and PRECISIONS[v.precision].is_measured_on_cpu]


def place_variant(artifact: Artifact, variant: Variant, device: Device, host: Host) -> Placement:
    """Return where a variant runs that was chosen before, by another process or by its name. Raises DeviceError."""
    placement = Placement(artifact=artifact, variant=variant, device=device, host=host)
    return _on_gpu(placement, gpu_for(device, host)) if device.is_gpu else placement


def place_on_gpu(artifact: Artifact, device: Device, precision: Wanted, host: Host) -> list[Placement]:
    """Return the variants for a GPU in a precision, or in all that it can compute in, best first, prepared or not.

    Raises DeviceError if there is none. One that the GPU cannot compute in and that was not named is announced.
    """
    gpu = gpu_for(device, host)
    here = [v for v in artifact.manifest.variants if v.target == device.target and v.layout in GPU_BATCHES]
    if not (found := [variant for variant in here if precision in (variant.precision, "auto")]):
        raise DeviceError(_not_exported(artifact, device, precision))
    best_first = sorted(_computable(found, gpu), key=lambda variant: rank(variant.precision, device.target))
    unprepared = [Placement(artifact=artifact, variant=v, device=device, host=host) for v in best_first]
    return [_on_gpu(placement, gpu) for placement in unprepared]


def choose(
    artifact: Artifact,
    precision: Wanted,
    machine: Machine,
    instruction_set: AskedSet | None = None,
    faster: Collection[str] = (),
    kernels: Kernels = NO_KERNELS,
) -> Variant:
    """Return the variant for a processor: in that precision, or for "auto" the best that is verified and pays there.

    Of several graphs in a precision it is the fastest here, unless another is asked for by its instruction set.
    `faster` are the names of those that were measured here. Raises DeviceError if there is none, or if a precision is
    asked for by name that is slower here than fp32.
    """
    if instruction_set == "kernels" and kernels.why_not is not None:
        raise DeviceError(f"instruction_set='kernels', but {kernels.why_not}; leave it out")
    graphs = {of: _graphs(of, machine, instruction_set, kernels, is_named=precision == of) for of in PRECISIONS}
    slower = _slower(machine, instruction_set)
    if precision != "auto" and precision in slower:
        raise DeviceError(
            f"{machine.processor} {slower[precision]}: {precision} would be slower than fp32 here; use precision='fp32'"
        )
    here = [v for v in artifact.manifest.variants if v.target == "cpu" and v.instruction_set in graphs[v.precision]]
    unmeasured = [v for v in measurable(artifact) if v.name not in faster]
    proved = [v for v in here if v not in unmeasured and (v.verification or v.name in faster)]
    wanted = proved if precision == "auto" else [v for v in here if v.precision == precision]
    left_out = [v for v in wanted if v.precision in slower]
    if not (usable := [v for v in wanted if v not in left_out]):
        raise DeviceError(_not_for_cpu(artifact, precision, instruction_set, kernels, machine))
    chosen = min(usable, key=lambda v: (rank(v.precision, "cpu"), graphs[v.precision].index(v.instruction_set)))
    if left_out:
        for name in sorted({v.precision for v in left_out}):
            _logger.warning("%s %s: using %s, not %s", machine.processor, slower[name], chosen.precision, name)
    return chosen


def _graphs(
    of: Precision, machine: Machine, asked: AskedSet | None, kernels: Kernels, *, is_named: bool
) -> tuple[InstructionSet | None, ...]:
    """Return what graphs of a precision that may be taken are made for, the fastest first; None is any processor."""
    if asked == "any" and (None in PRECISIONS[of].instruction_sets or not is_named):
        return (None,)
    if asked is not None and asked != "any":
        return asked, None
    others = (*machine.instruction_sets, None)
    if kernels.why_not_first(of, machine) is None:
        return "kernels", *others
    # In int8 kernels with AVX2 alone drift as others do and take fp32's time, so only who names int8 gets them.
    are_slow = PRECISIONS[of].needs_fast_bytes and kernels.instruction_set == "avx2" and not is_named
    return others if kernels.why_not is not None or are_slow else (*others, "kernels")


def _slower(machine: Machine, instruction_set: AskedSet | None) -> Mapping[Precision, str]:
    """Return what a processor lacks for each precision that would be slower there than fp32."""
    found: dict[Precision, str] = {}
    for name, row in PRECISIONS.items():
        if row.needs_fast_bytes and not machine.multiplies_bytes and instruction_set is None:
            found[name] = "has no fast products of bytes (AVX2, or asimddp on Arm)"
        if row.cpu_library == "openvino" and machine.multiplies_bf16 is None:
            found[name] = "does not multiply brain floats (by AMX or AVX-512 BF16)"
    return found


def _on_gpu(placement: Placement, gpu: Gpu) -> Placement:
    """Return the same on its GPU, with the record of what was prepared for it."""
    placement = replace(placement, gpu=gpu)
    return replace(placement, record=find_record(key_of(placement)))


def _on_gpu_if_possible(artifact: Artifact, precision: Wanted, host: Host) -> Placement | None:
    """Return the variant for the first GPU, or None; if there is one that cannot be used, say why."""
    exported = {variant.target for variant in artifact.manifest.variants}
    reasons: list[str] = []
    for target in [target for target in _GPU_TARGETS if target in exported] or _GPU_TARGETS[:1]:
        try:
            placements = place_on_gpu(artifact, Device(target), precision, host)
            return _first_usable(placements, must_be_verified=True)
        except DeviceError as error:
            reasons.append(str(error))
    _logger.warning("this host has an NVIDIA driver, but the CPU is used: %s", "; ".join(reasons))
    return None


def _first_usable(placements: Sequence[Placement], *, must_be_verified: bool) -> Placement:
    """Return the first without a reason against it. Raises DeviceError with the first one's if all have one."""
    reasons = [_why_not(placement, must_be_verified=must_be_verified) for placement in placements]
    usable = [placement for placement, reason in zip(placements, reasons, strict=True) if reason is None]
    if not usable:
        raise DeviceError(reasons[0])
    return usable[0]


def _why_not(placement: Placement, *, must_be_verified: bool) -> str | None:
    """Return what keeps a variant from running on its GPU, and what to do; None if nothing does.

    Verified is what the manifest says, or `rankrt prepare` on this host; engines always need the latter.
    """
    variant, record = placement.variant, placement.record
    needs_engines = TARGETS[variant.target].builds_engines
    if not needs_engines and (variant.verification is not None or not must_be_verified):
        return None
    if record is None:
        return _not_prepared(placement, needs_engines=needs_engines)
    if must_be_verified and not record.is_verified:
        return (
            f"{variant.name} was prepared here, but its artifact has no examples to verify it with; name the precision:"
            f" '{variant.precision}'"
        )
    return None


def _not_prepared(placement: Placement, *, needs_engines: bool) -> str:
    name, command, key = placement.variant.name, prepare_command(placement), key_of(placement)
    if (other := find_record_like(key)) is not None:
        return f"{name} was prepared for something else ({differences(key, other.key)}). Prepare it: {command}"
    if needs_engines:
        return (
            f"{name} has no engines here. Building them takes minutes, so loading does not do it. Do it now: {command}"
        )
    return f"{name} was never verified, as the host that exported it had no GPU. Verify it here: {command}"


def _computable(variants: Sequence[Variant], gpu: Gpu) -> Sequence[Variant]:
    """Return those of the variants whose numbers a GPU multiplies. Raises DeviceError if there are none."""
    found = [v for v in variants if PRECISIONS[v.precision].least_capability <= gpu.version]
    for left_out in [variant for variant in variants if variant not in found]:
        least = ".".join(map(str, PRECISIONS[left_out.precision].least_capability))
        reason = f"needs a GPU of compute capability {least} or newer, {gpu.name} has {gpu.capability}"
        if not found:
            raise DeviceError(f"{left_out.name} {reason}; use another precision")
        _logger.warning("%s is left out: it %s", left_out.name, reason)
    return found


def _not_exported(artifact: Artifact, device: Device, precision: Wanted) -> str:
    has = ", ".join(variant.name for variant in artifact.manifest.variants)
    asked = device.target if precision == "auto" else f"{device.target} in {precision}"
    return (
        f"{artifact.folder} has no variant for {asked}; it has {has}. Export one:"
        f" rankrt export {artifact.manifest.source.id} FOLDER --target {device.target}"
    )


def _not_for_cpu(
    artifact: Artifact, precision: Wanted, asked: AskedSet | None, kernels: Kernels, machine: Machine
) -> str:
    source = artifact.manifest.source.id
    on_cpu = [v for v in artifact.manifest.variants if v.target == "cpu" and precision in ("auto", v.precision)]
    first = on_cpu[0] if on_cpu and asked is None and all(v.key.needs_kernels for v in on_cpu) else None
    if first is not None and (reason := kernels.why_not_first(first.precision, machine)) is not None:
        return (
            f"{artifact.folder} has {first.name} for rankrt's own kernels, but {reason}. Export the graphs for other"
            f" processors as well: rankrt export {source} FOLDER --precision {first.precision}"
        )
    has = ", ".join(v.name if v.verification else f"{v.name} (not verified)" for v in artifact.manifest.variants)
    wanted = "verified variant for cpu" if precision == "auto" else f"{precision} for cpu"
    if asked is not None:
        wanted += f" with instruction_set={asked!r}"
    need = "" if precision == "auto" else f": rankrt export {source} FOLDER --precision {precision}"
    return f"{artifact.folder} has no {wanted}; it has {has}. Ask for one of these, or export the one you need{need}"
