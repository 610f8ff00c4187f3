"""From a checkpoint to an artifact: open, write, verify, and only then give it its name."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from rankrt.artifact import (
    FORMAT_VERSION,
    Artifact,
    File,
    Layout,
    Manifest,
    Precision,
    Quantization,
    Source,
    Target,
    Variant,
    open_artifact,
    sha256_of,
    write_manifest,
)
from rankrt.atomic import new_folder
from rankrt.reranker import Reranker
from rankrt.sources import Hub
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.calibration import Calibration, Recipe, calibrate
from rankrt_export.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.data import DataFiles
from rankrt_export.errors import CheckpointError, DriftError, OutputError
from rankrt_export.graph import Graph
from rankrt_export.precision import PRECISIONS
from rankrt_export.precision.int8 import Int8
from rankrt_export.targets import TARGETS
from rankrt_export.template import template_of, write_tokenizer
from rankrt_export.texts import Texts, sample
from rankrt_export.traced import DATA as TRACED_DATA
from rankrt_export.traced import trace
from rankrt_export.verify import limits_for, reference, verify
from rankrt_export.weights import hashed_in_background

TOKENIZER = "tokenizer.json"
# A variant's bytes beside those of the weights as float32.
_SIZE_OF: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.5, "int8": 0.26}
_N_EXAMPLES = 3
# What is foreseen of int8's drift is right to the first order only, so a second try aims lower than the limit.
_AIM = 0.7
# Rows are verified up to this length; the sample has one that is longer.
VERIFIED_LENGTH = 1024

# Opens a progress bar for a step: its title, its total and its unit; the bar is told what was done.
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def no_bar(title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda n_done: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to export, and how to check it.

    texts         what to verify on besides the sample that comes with rankrt
    calibration   what int8 is calibrated on; by default the sample
    is_verified   False writes variants that only an explicit precision will load
    max_difference, min_tau   limits in place of the precisions' own; fp32's are fixed
    """

    precisions: Sequence[Precision] = ("fp32",)
    targets: Sequence[Target] = ("cpu",)
    texts: Texts | None = None
    calibration: Texts | None = None
    is_verified: bool = True
    max_difference: float | None = None
    min_tau: float | None = None


def export(source: str, out: Path, options: Options, *, hub: Hub | None = None, bar: Bar = no_bar) -> Artifact:
    """Export a checkpoint, a folder or a hub id, into a folder that does not exist yet.

    The folder appears when everything in it is written and verified, or not at all. int8 that drifts too far is tried
    again with more layers in fp32. Raises CheckpointError, OutputError or VerificationError.
    """
    check_is_new(out)
    checkpoint = open_checkpoint(source, hub or Hub())
    check_has_room(checkpoint, out, options.precisions)
    calibration = _calibration(checkpoint, options, bar) if "int8" in options.precisions else None
    recipe = calibration.recipe(calibration.n_kept) if calibration else None
    while True:
        try:
            return _export_once(checkpoint, out, options, recipe, bar)
        except DriftError as error:
            if calibration is None or recipe is None or error.precision != "int8":
                raise
            recipe = calibration.tighter(recipe, _AIM / error.excess)
            if recipe is None:
                raise


def _export_once(checkpoint: Checkpoint, out: Path, options: Options, recipe: Recipe | None, bar: Bar) -> Artifact:
    try:
        with new_folder(out) as folder:
            manifest = write(checkpoint, folder, options, bar, recipe)
            if options.is_verified:
                manifest = verified(checkpoint, folder, manifest, options, bar)
            write_manifest(manifest, folder)
    except OSError as error:
        raise OutputError(f"{out} could not be written ({error.strerror or error}); nothing was left there") from error
    return open_artifact(out)


def export_into(source: str, folder: Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Export a checkpoint in fp32, verified, into an empty folder: what the runtime calls for its cache."""
    checkpoint = open_checkpoint(source, Hub(revision=revision, cache_dir=cache_dir))
    check_has_room(checkpoint, folder, Options().precisions)
    manifest = write(checkpoint, folder, Options(), no_bar)
    write_manifest(verified(checkpoint, folder, manifest, Options(), no_bar), folder)


def write(checkpoint: Checkpoint, folder: Path, options: Options, bar: Bar, recipe: Recipe | None = None) -> Manifest:
    """Write the files of all variants and return the manifest that describes them, nothing verified yet.

    `recipe` says how int8 is computed, if that is one of the precisions.
    """
    template = template_of(write_tokenizer(checkpoint, folder / TOKENIZER))
    with hashed_in_background(checkpoint.weights) as weights_sha256:
        if checkpoint.architecture in ARCHITECTURES:
            variants, data = written(checkpoint, folder, options, bar, recipe)
        else:
            variants, data = traced(checkpoint, folder, options, bar)
        source = Source(id=checkpoint.id, revision=checkpoint.revision, weights_sha256=weights_sha256.result())
    small = {name: _file(folder / name) for name in (TOKENIZER, *(variant.graph for variant in variants))}
    return Manifest(
        format_version=FORMAT_VERSION,
        producer=f"rankrt {version('rankrt')}",
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        source=source,
        tokenizer=TOKENIZER,
        template=template,
        max_length=checkpoint.max_length,
        examples=(),
        variants=tuple(variants),
        files=small | data,
    )


def written(
    checkpoint: Checkpoint, folder: Path, options: Options, bar: Bar, recipe: Recipe | None
) -> tuple[list[Variant], dict[str, File]]:
    """Write a graph node by node for each target and precision; weights are shared where their bytes are the same."""
    variants = []
    precisions = PRECISIONS if recipe is None else {**PRECISIONS, "int8": Int8(recipe)}
    n_bytes = _n_bytes(checkpoint, options.precisions)
    with bar("writing", n_bytes, "B") as progress, DataFiles(folder, progress) as data:
        for target in options.targets:
            for precision in options.precisions:
                graph = Graph(
                    weights=checkpoint.weights, data=data, precision=precisions[precision], rows=TARGETS[target]
                )
                name = f"{target}-{precision}.onnx"
                graph.save(folder / name, logits=ARCHITECTURES[checkpoint.architecture](graph, checkpoint.config))
                quantization = recipe.summary if recipe and precision == "int8" else None
                variants.append(_variant(target, precision, name, graph.rows.layout, graph.data_files, quantization))
    return variants, data.files


def traced(checkpoint: Checkpoint, folder: Path, options: Options, bar: Bar) -> tuple[list[Variant], dict[str, File]]:
    """Let torch trace the graph of a model that no architecture here describes; fp32 for the CPU only."""
    if set(options.precisions) != {"fp32"} or set(options.targets) != {"cpu"}:
        raise CheckpointError(
            f"{checkpoint.architecture} is exported by tracing, for the CPU in fp32 only; other precisions and targets"
            f" are for {', '.join(ARCHITECTURES)}"
        )
    name = "cpu-fp32.onnx"
    with bar("tracing", 1, "model") as progress:
        trace(checkpoint, folder / name)
        progress(1)
    return [_variant("cpu", "fp32", name, "stacked", [TRACED_DATA], None)], {TRACED_DATA: _file(folder / TRACED_DATA)}


def verified(checkpoint: Checkpoint, folder: Path, manifest: Manifest, options: Options, bar: Bar) -> Manifest:
    """Return the manifest with every variant's figures, and examples by which other hosts can check themselves."""
    write_manifest(manifest, folder)
    texts = sample() + options.texts if options.texts else sample()
    rerankers = [_reranker(folder, variant) for variant in manifest.variants]
    with bar("PyTorch", len(texts.pairs), "pair") as progress:
        against = reference(checkpoint, rerankers[0], texts, progress)
    variants = []
    for reranker in rerankers:
        limits = limits_for(reranker.variant.precision, options.max_difference, options.min_tau)
        with reranker, bar(reranker.variant.name, len(texts.pairs), "pair") as progress:
            found = verify(reranker, against, limits, progress)
        variants.append(msgspec.structs.replace(reranker.variant, verification=found))
    return msgspec.structs.replace(manifest, variants=tuple(variants), examples=against.examples(_N_EXAMPLES))


def check_is_new(out: Path) -> None:
    """Raise OutputError if there is something of that name already."""
    if out.exists():
        raise OutputError(f"{out} exists; remove it or choose another folder: an artifact is never written over")


def check_has_room(checkpoint: Checkpoint, out: Path, precisions: Sequence[Precision]) -> None:
    """Raise OutputError, before anything is written, if the disk is too small."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    needed, free = _n_bytes(checkpoint, precisions), shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(f"{parent} has {free / 1e9:.1f} GB free, the artifact takes about {needed / 1e9:.1f} GB")


def _n_bytes(checkpoint: Checkpoint, precisions: Sequence[Precision]) -> int:
    n_parameters = sum(int(np.prod(checkpoint.weights.shape(name))) for name in checkpoint.weights.names)
    return int(4 * n_parameters * sum(_SIZE_OF[precision] for precision in precisions))


def _reranker(folder: Path, variant: Variant) -> Reranker:
    """Load a variant as any host would, but from the artifact itself, and with rows as transformers cuts them."""
    length = min(VERIFIED_LENGTH, open_artifact(folder).manifest.max_length)
    return Reranker.load(
        folder, precision=variant.precision, max_length=length, truncation="longest_first", prepare=False
    )


def _calibration(checkpoint: Checkpoint, options: Options, bar: Bar) -> Calibration:
    limits = limits_for("int8", options.max_difference, options.min_tau)
    with bar("calibrating", 0, "pair") as progress:
        return calibrate(checkpoint, options.calibration or sample(), limits, progress)


def _variant(
    target: Target,
    precision: Precision,
    graph: str,
    layout: Layout,
    data: Iterable[str],
    quantization: Quantization | None,
) -> Variant:
    return Variant(
        target=target,
        precision=precision,
        layout=layout,
        graph=graph,
        data=tuple(sorted(data)),
        verification=None,
        quantization=quantization,
    )


def _file(path: Path) -> File:
    return File(n_bytes=path.stat().st_size, sha256=sha256_of(path))
