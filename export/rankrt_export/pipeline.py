"""From a checkpoint to an artifact: open, calibrate, write, verify, and only then give it its name."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankrt.artifact.manifest import Artifact, open_artifact, write_manifest
from rankrt.artifact.precisions import VariantKey
from rankrt.artifact.source import Hub
from rankrt.files.folders import new_folder
from rankrt.kernels import kernels_in_use
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.calibrate.calibration import Calibration, calibrate
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.errors import OutputError, PartialError, VariantError, VerificationError
from rankrt_export.job.checks import check_checkpoint, check_has_memory, check_has_room, check_is_new, check_limits
from rankrt_export.job.job import Job, make_job
from rankrt_export.job.options import Bar, asked_variants, no_bar
from rankrt_export.job.options import Options as Options
from rankrt_export.job.plan import Plan
from rankrt_export.job.verifier import Verifier
from rankrt_export.job.write import write
from rankrt_export.reference.pytorch_decoder import Asked

_logger = logging.getLogger("rankrt")


def export(source: str, out: Path, options: Options, *, hub: Hub | None = None, bar: Bar = no_bar) -> Artifact:
    """Export a checkpoint, a folder or a hub id, into a folder that does not exist yet.

    The folder appears when everything in it is written and verified, or not at all. int8 that drifts too far is tried
    again with more layers kept as they are. A variant that this host cannot run is written without verification; those
    for rankrt's own kernels are left out where these are missing. Raises CheckpointError, OptionsError or OutputError;
    VerificationError if no precision is within its limits, or fp32 is not; PartialError, which has the artifact, if
    some are and others are not.
    """
    check_is_new(out)
    job = open_job(source, options, hub or Hub(), out)
    _announce_missing_kernels(asked_variants(options.targets, options.precisions))
    calibrations, failures = _calibrate(job, bar)
    plan, verifier = Plan.of(job.variants, calibrations, failures), Verifier(job, bar)
    while plan.recipes:
        try:
            with new_folder(out) as folder:
                fill(folder, job, plan, verifier, bar)
        except VariantError as error:
            plan = plan.after(error, calibrations)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{out} could not be written ({reason}); nothing was left there") from error
        else:
            return _announce(open_artifact(out), plan)
    raise VerificationError(f"{plan.reasons}; nothing was written. {plan.advice}")


def export_into(source: str, folder: Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Export a checkpoint in fp32, verified, into an empty folder: what the runtime calls for its cache."""
    job = open_job(source, Options(), Hub(revision=revision, cache_dir=cache_dir), folder)
    fill(folder, job, Plan.of(job.variants), Verifier(job, no_bar), no_bar)


def open_job(source: str, options: Options, hub: Hub, out: Path) -> Job:
    """Open a checkpoint, and refuse before anything is computed what cannot be written to `out`."""
    check_limits(options)
    asked = asked_variants(options.targets, options.precisions)
    checkpoint = open_checkpoint(source, hub, options.label)
    variants = [key for key in asked if not key.needs_kernels or _can_use_kernels(checkpoint)]
    check_checkpoint(checkpoint, variants, options)
    job = make_job(checkpoint, variants, options)
    check_has_room(job, out)
    check_has_memory(job)
    return job


def _can_use_kernels(checkpoint: Checkpoint) -> bool:
    """Tell whether rankrt's kernels run on this host, which has to verify them, and can be part of a model's graph."""
    return kernels_in_use() is not None and checkpoint.architecture in ARCHITECTURES


def fill(folder: Path, job: Job, plan: Plan, verifier: Verifier, bar: Bar) -> None:
    """Write an artifact into an empty folder. Raises VariantError for the first variant that is outside its limits."""
    manifest = write(job, plan, folder, bar)
    write_manifest(verifier.verify(folder, manifest), folder)


def _calibrate(job: Job, bar: Bar) -> tuple[Mapping[VariantKey, Calibration], list[VariantError]]:
    """Calibrate what needs it; a decoder is read after its last exit."""
    if not job.calibrated:
        return {}, []
    asked = Asked(style=job.style, readout=job.readouts[-1]) if job.style else None
    with bar("calibrating", 0, "pair") as progress:
        return calibrate(job.checkpoint, job.calibration, job.calibrated, progress, asked)


def _announce_missing_kernels(asked: Sequence[VariantKey]) -> None:
    """Say that variants that were asked for are left out, where rankrt's kernels do not run."""
    needs_kernels = [str(key) for key in asked if key.needs_kernels]
    if needs_kernels and kernels_in_use() is None:
        _logger.warning(
            "left out %s: rankrt's own kernels are not installed for this processor. The other variants do not need"
            " them",
            " and ".join(needs_kernels),
        )


def _announce(artifact: Artifact, plan: Plan) -> Artifact:
    """Return the artifact. Raises PartialError, which has it, if it lacks a precision that was asked for."""
    for error in plan.left_out:
        if error not in plan.missing:
            _logger.warning("left out %s: %s", error.variant, error)
    if plan.missing:
        written = ", ".join(variant.name for variant in artifact.manifest.variants)
        raise PartialError(
            f"{plan.reasons}; {artifact.folder} was written with {written} only. {plan.advice}", artifact=artifact
        )
    return artifact
