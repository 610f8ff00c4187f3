"""Writing the files of an artifact, and the manifest that describes them. Verifies nothing."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rankrt.artifact.manifest import (
    FORMAT_VERSION,
    Compression,
    Exit,
    File,
    Layout,
    Manifest,
    Source,
    Variant,
    sha256_of,
)
from rankrt.artifact.precisions import VariantKey
from rankrt_export.architectures import ARCHITECTURES, deberta, traced
from rankrt_export.checkpoint.tokenizer import has_token_types, write_tokenizer
from rankrt_export.checkpoint.weights import hashed_in_background
from rankrt_export.errors import RangeError, VariantError
from rankrt_export.graph.blueprint import Blueprint, Section
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import Graph
from rankrt_export.job.checks import TRACED, estimate_bytes
from rankrt_export.job.job import Job
from rankrt_export.job.options import Bar
from rankrt_export.job.plan import Plan
from rankrt_export.precision.methods import arithmetic_of
from rankrt_export.precision.recipes import Recipe

TOKENIZER = "tokenizer.json"


def write(job: Job, plan: Plan, folder: Path, bar: Bar) -> Manifest:
    """Write the files of all variants of a plan and return the manifest that describes them.

    Raises VariantError if a weight has a value that a precision cannot hold.
    """
    checkpoint = job.checkpoint
    write_tokenizer(checkpoint, folder / TOKENIZER)
    with hashed_in_background(checkpoint.weights) as weights_sha256:
        variants, data = _trace(job, folder, bar) if job.is_traced else _write_graphs(job, plan, folder, bar)
        source = Source(
            id=checkpoint.id,
            revision=checkpoint.revision,
            weights_sha256=weights_sha256.result(),
            license=checkpoint.card.license,
            languages=checkpoint.card.languages,
        )
    graphs = [name for variant in variants for name in variant.graphs]
    return Manifest(
        format_version=FORMAT_VERSION,
        producer=f"rankrt {version('rankrt')}",
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        source=source,
        tokenizer=TOKENIZER,
        template=job.template,
        max_length=checkpoint.max_length,
        examples=(),
        variants=tuple(variants),
        files={name: _describe_file(folder / name) for name in (TOKENIZER, *graphs)} | data,
        score=job.score,
    )


def _write_graphs(job: Job, plan: Plan, folder: Path, bar: Bar) -> tuple[list[Variant], dict[str, File]]:
    """Write graphs node by node, and weights once where variants have the same bytes."""
    checkpoint, variants = job.checkpoint, []
    is_matrix = checkpoint.is_decoder or checkpoint.architecture in deberta.CLASSES
    with bar("writing", estimate_bytes(job), "B") as progress, DataFiles(folder, progress) as data:
        for key, recipe in plan.recipes.items():
            arithmetic = arithmetic_of(key, recipe, is_matrix=is_matrix)
            blueprint = Blueprint(
                config=checkpoint.config,
                weights=checkpoint.weights,
                target=key.target,
                operators=key.operators,
                readouts=job.readouts,
                cuts=list(job.compressions),
                max_length=checkpoint.max_length,
                has_token_types=has_token_types(checkpoint),
                head=checkpoint.saved.head,
                new_graph=partial(Graph, weights=checkpoint.weights, data=data, precision=arithmetic),
            )
            try:
                sections = ARCHITECTURES[checkpoint.architecture](blueprint)
            except RangeError as error:
                raise VariantError(str(error), variant=key) from error
            variants.append(_save_graphs(sections, job.compressions, folder, key, recipe))
    return variants, data.files


def _save_graphs(
    sections: Sequence[Section], ratios: Mapping[int, int], folder: Path, key: VariantKey, recipe: Recipe | None
) -> Variant:
    """Save the graphs of a variant; those of one with exits are named after the layer where they end.

    `ratios` are those by which passages are compressed, by layer.
    """
    names = [f"{key}.onnx" if section.layer is None else f"{key}-{section.layer}.onnx" for section in sections]
    for section, name in zip(sections, names, strict=True):
        section.graph.save(folder / name, **section.outputs)
    exits = [
        Exit(layer=section.layer, graph=name, verification=None, margins=None)
        for section, name in zip(sections, names, strict=True)
        if section.layer is not None and "logits" in section.outputs
    ]
    at_exits, named = (
        {end.layer for end in exits},
        {section.layer: name for section, name in zip(sections, names, strict=True)},
    )
    compressions = [
        Compression(layer=layer, ratio=ratio, graph=None if layer in at_exits else named[layer])
        for layer, ratio in ratios.items()
    ]
    data = {file for section in sections for file in section.graph.data_files}
    return _describe_variant(key, names[0], sections[0].layout, data, recipe, exits, compressions)


def _trace(job: Job, folder: Path, bar: Bar) -> tuple[list[Variant], dict[str, File]]:
    """Let torch trace the graph of a model that no architecture here describes."""
    name = f"{TRACED}.onnx"
    with bar("tracing", 1, "model") as progress:
        traced.trace(job.checkpoint, folder / name)
        progress(1)
    variant = _describe_variant(TRACED, name, "stacked", [traced.DATA])
    return [variant], {traced.DATA: _describe_file(folder / traced.DATA)}


def _describe_variant(
    key: VariantKey,
    graph: str,
    layout: Layout,
    data: Iterable[str],
    recipe: Recipe | None = None,
    exits: Iterable[Exit] = (),
    compressions: Iterable[Compression] = (),
) -> Variant:
    return Variant(
        target=key.target,
        precision=key.precision,
        instruction_set=key.instruction_set,
        layout=layout,
        graph=graph,
        data=tuple(sorted(data)),
        verification=None,
        quantization=recipe.summary if recipe else None,
        exits=tuple(exits),
        compressions=tuple(compressions),
    )


def _describe_file(path: Path) -> File:
    return File(n_bytes=path.stat().st_size, sha256=sha256_of(path))
