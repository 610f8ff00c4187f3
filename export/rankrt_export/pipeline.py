"""From a checkpoint to an artifact: open, write, verify, and only then give it its name."""

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from rankrt.artifact.manifest import (
    FORMAT_VERSION,
    PRECISIONS,
    Artifact,
    Exit,
    File,
    Layout,
    Manifest,
    Precision,
    Score,
    Source,
    Target,
    Template,
    Variant,
    open_artifact,
    sha256_of,
    write_manifest,
)
from rankrt.artifact.source import Hub
from rankrt.files.folders import new_folder
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.architectures.traced import DATA as TRACED_DATA
from rankrt_export.architectures.traced import trace
from rankrt_export.calibrate.calibration import Calibration, calibrate
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.checkpoint.modules import MODULES
from rankrt_export.checkpoint.tokenizer import read_tokenizer, template_of, write_tokenizer
from rankrt_export.checkpoint.weights import hashed_in_background
from rankrt_export.decoders.prompt_files import PromptFile
from rankrt_export.decoders.prompts import answer_tokens, prompted_template, style_for
from rankrt_export.decoders.readouts import readouts_of
from rankrt_export.errors import (
    CheckpointError,
    OptionsError,
    OutputError,
    PartialError,
    RangeError,
    VariantError,
    VerificationError,
)
from rankrt_export.graph.blueprint import Blueprint, Readout, Section
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import Graph
from rankrt_export.precision.recipes import Kind, Recipe
from rankrt_export.reference.pytorch_decoder import Asked
from rankrt_export.text.texts import Texts, sample
from rankrt_export.variants import Name, asked_variants, is_explicit, kinds_of, precision_of, recipes_of
from rankrt_export.verify.memory import available_bytes
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.scorers import can_run, load
from rankrt_export.verify.verify import Reference, decoder_reference, example_pairs, limits_for, reference, verify

TOKENIZER = "tokenizer.json"
# A variant's bytes beside those of the weights as float32.
_SIZE_OF: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.5, "w8": 0.29, "int8": 0.26, "fp8": 0.26, "int4": 0.26}
# As ONNX Runtime holds them: it widens fp16 when it loads.
_IN_MEMORY: dict[Precision, float] = {**_SIZE_OF, "fp16": 1.0}
# 8 bits for TensorRT share nothing with a CPU's, and have tables in fp16. To be verified all is widened to fp32.
_EXPLICIT_SIZE, _EXPLICIT_IN_MEMORY = 0.5, 1.0
# An engine is checked by them where it is built.
N_EXAMPLES = 24
# What is foreseen of int8's drift is right to the first order only, so a second try aims lower than the limit.
_AIM = 0.7

_logger = logging.getLogger("rankrt")

# Opens a progress bar for a step: its title, its total and its unit; the bar is told what was done.
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def no_bar(title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda n_done: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to export, and how to check it.

    precisions, targets  each target gets those of the precisions that it has
    texts         what to verify on besides the sample that comes with rankrt
    calibration   what int8 and fp8 are calibrated on; by default the sample
    is_verified   False writes variants that only an explicit precision will load
    max_difference, min_tau   limits in place of the precisions' own; fp32's are fixed
    cutoff_layers  behind which layers a layerwise model's scores can be read; by default every fourth that has a head
    prompt         how a decoder is asked, a name of `styles.STYLES` or a file; by default as its files or its name say
    """

    precisions: Sequence[Precision] = ("fp32",)
    targets: Sequence[Target] = ("cpu",)
    texts: Texts | None = None
    calibration: Texts | None = None
    is_verified: bool = True
    max_difference: float | None = None
    min_tau: float | None = None
    cutoff_layers: Sequence[int] | None = None
    prompt: str | PromptFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The variants to write.

    names     targets in precisions
    recipes   for those that are written by one: a variant each
    left_out  of those that were asked for: why they are not written
    """

    names: Sequence[Name]
    recipes: Mapping[Kind, Recipe] = field(default_factory=dict)
    left_out: tuple[VariantError, ...] = ()

    @classmethod
    def of(cls, options: Options) -> "Plan":
        """Return the plan of all that is asked for, without recipes. Raises OptionsError for what no target has."""
        return cls(names=asked_variants(options.targets, options.precisions))

    def without(self, name: Name, error: VariantError) -> "Plan":
        """Return the plan that leaves out a target in a precision."""
        return Plan(
            names=[other for other in self.names if other != name],
            recipes={kind: recipe for kind, recipe in self.recipes.items() if (kind.target, kind.precision) != name},
            left_out=(*self.left_out, error),
        )


def export(source: str, out: Path, options: Options, *, hub: Hub | None = None, bar: Bar = no_bar) -> Artifact:
    """Export a checkpoint, a folder or a hub id, into a folder that does not exist yet.

    The folder appears when everything in it is written and verified, or not at all. int8 that drifts too far is tried
    again with more layers kept as they are. A variant that this host cannot run is written without verification. Raises
    CheckpointError, OptionsError or OutputError; VerificationError if no precision is within its limits, or fp32 is
    not; PartialError, which has the artifact, if some are and others are not.
    """
    check_is_new(out)
    check_limits(options)
    plan = Plan.of(options)
    checkpoint = open_checkpoint(source, hub or Hub())
    check_has_targets(checkpoint, options.targets)
    check_has_head(checkpoint)
    check_has_prompt(checkpoint, options)
    check_has_room(checkpoint, out, options)
    check_has_memory(checkpoint, options)
    calibrations, failures = _calibrations(checkpoint, options, bar)
    plan = replace(plan, recipes={kind: found.recipe(found.n_kept) for kind, found in calibrations.items()})
    for failure in failures:
        plan = _plan_after(failure, plan, calibrations)
    verifier = _Verifier(checkpoint, options, bar)
    while plan.names:
        try:
            artifact = _export_once(checkpoint, out, options, plan, verifier, bar)
        except VariantError as error:
            plan = _plan_after(error, plan, calibrations)
        else:
            break
    else:
        raise VerificationError(f"{_reasons(plan)}; nothing was written. {_advice(plan)}")
    if plan.left_out:
        written = ", ".join(variant.name for variant in artifact.manifest.variants)
        raise PartialError(
            f"{_reasons(plan)}; {out} was written with {written} only. {_advice(plan)}",
            artifact=artifact,
        )
    return artifact


def _plan_after(error: VariantError, plan: Plan, calibrations: Mapping[Kind, Calibration]) -> Plan:
    """Return a plan in which the variant that failed keeps more layers as they are, or is left out.

    Raises VerificationError if it is fp32: then it is the graph that is wrong.
    """
    if (kind := next((kind for kind in calibrations if kind.name == error.variant), None)) is not None:
        tighter = calibrations[kind].tighter(plan.recipes[kind], _AIM / error.excess)
        if tighter is not None:
            return replace(plan, recipes={**plan.recipes, kind: tighter})
    others = {other: recipe for other, recipe in plan.recipes.items() if other.name != error.variant}
    name = next((name for name in plan.names if f"{error.variant}-".startswith("-".join(name) + "-")), None)
    if name is None:  # left out already, for another set of instructions
        return replace(plan, left_out=(*plan.left_out, error))
    if any((other.target, other.precision) == name for other in others):
        _logger.warning("left out %s: %s", error.variant, error)
        return replace(plan, recipes=others)
    if name[1] == PRECISIONS[0]:
        raise VerificationError(f"{error}; nothing was written, as fp32 has to be exact") from error
    return plan.without(name, error)


def _reasons(plan: Plan) -> str:
    return "; ".join(map(str, plan.left_out))


def _advice(plan: Plan) -> str:
    """Say how a precision that was left out could be had."""
    if all(math.isinf(error.excess) for error in plan.left_out):
        return "Choose other precisions with --precision"
    return "Allow more with --max-drift and --min-tau, or choose other precisions with --precision"


def _export_once(
    checkpoint: Checkpoint, out: Path, options: Options, plan: Plan, verifier: "_Verifier", bar: Bar
) -> Artifact:
    try:
        with new_folder(out) as folder:
            manifest = write(checkpoint, folder, options, bar, plan)
            if options.is_verified:
                manifest = verifier.verified(folder, manifest)
            write_manifest(manifest, folder)
    except OSError as error:
        raise OutputError(f"{out} could not be written ({error.strerror or error}); nothing was left there") from error
    return open_artifact(out)


def export_into(source: str, folder: Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Export a checkpoint in fp32, verified, into an empty folder: what the runtime calls for its cache."""
    checkpoint = open_checkpoint(source, Hub(revision=revision, cache_dir=cache_dir))
    check_has_head(checkpoint)
    check_has_prompt(checkpoint, Options())
    check_has_room(checkpoint, folder, Options())
    check_has_memory(checkpoint, Options())
    manifest = write(checkpoint, folder, Options(), no_bar, Plan.of(Options()))
    write_manifest(_Verifier(checkpoint, Options(), no_bar).verified(folder, manifest), folder)


def write(checkpoint: Checkpoint, folder: Path, options: Options, bar: Bar, plan: Plan) -> Manifest:
    """Write the files of all variants and return the manifest that describes them, nothing verified yet."""
    tokenizer = write_tokenizer(checkpoint, folder / TOKENIZER)
    template, score, readouts = asked(checkpoint, tokenizer, options)
    with hashed_in_background(checkpoint.weights) as weights_sha256:
        if checkpoint.architecture in ARCHITECTURES:
            variants, data = written(checkpoint, folder, options, bar, plan, readouts)
        else:
            variants, data = traced(checkpoint, folder, options, bar)
        source = Source(
            id=checkpoint.id,
            revision=checkpoint.revision,
            weights_sha256=weights_sha256.result(),
            license=checkpoint.card.license,
            languages=checkpoint.card.languages,
        )
    graphs = [name for variant in variants for name in variant.graphs]
    small = {name: _file(folder / name) for name in (TOKENIZER, *graphs)}
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
        score=score,
    )


def asked(checkpoint: Checkpoint, tokenizer: Tokenizer, options: Options) -> tuple[Template, Score, list[Readout]]:
    """Return how a row is put together, what a score is, and of a decoder where it is read."""
    activation = checkpoint.saved.activation
    if checkpoint.is_decoder:
        style = style_for(checkpoint, tokenizer, options.prompt)
        readouts = readouts_of(checkpoint, tokenizer, style, options.cutoff_layers)
        score = Score(answers=answer_tokens(tokenizer, style), activation=activation)
        return prompted_template(tokenizer, style, checkpoint.tokenizer_config), score, readouts
    for name in ("cutoff_layers", "prompt"):
        if getattr(options, name) is not None:
            raise CheckpointError(f"{name} is for decoders; {checkpoint.id} is a {checkpoint.architecture}")
    return template_of(tokenizer, checkpoint.saved), Score(activation=activation), []


def written(
    checkpoint: Checkpoint,
    folder: Path,
    options: Options,
    bar: Bar,
    plan: Plan,
    readouts: Sequence[Readout],
) -> tuple[list[Variant], dict[str, File]]:
    """Write graphs node by node for each target and precision; weights are shared where their bytes are the same.

    Raises VariantError if a weight has a value that a precision cannot hold.
    """
    variants = []
    n_bytes = _n_bytes(checkpoint, options)
    with bar("writing", n_bytes, "B") as progress, DataFiles(folder, progress) as data:
        for target, name in plan.names:
            for recipe in recipes_of(target, name, plan.recipes):
                precision = precision_of(target, name, recipe, is_causal=checkpoint.is_decoder)
                blueprint = Blueprint(
                    config=checkpoint.config,
                    weights=checkpoint.weights,
                    target=target,
                    readouts=readouts,
                    max_length=checkpoint.max_length,
                    head=checkpoint.saved.head,
                    new_graph=partial(Graph, weights=checkpoint.weights, data=data, precision=precision),
                )
                try:
                    sections = ARCHITECTURES[checkpoint.architecture](blueprint)
                except RangeError as error:
                    raise VariantError(str(error), variant=f"{target}-{name}") from error
                variants.append(_saved(sections, folder, target, name, recipe))
    return variants, data.files


def _saved(
    sections: Sequence[Section], folder: Path, target: Target, precision: Precision, recipe: Recipe | None
) -> Variant:
    """Save the graphs of a variant; those of one with exits are named after the layer where they end."""
    exits = []
    for section in sections:
        parts = (target, precision, recipe.kind.instruction_set if recipe else None, section.layer)
        name = "-".join(str(part) for part in parts if part is not None) + ".onnx"
        section.graph.save(folder / name, **section.outputs)
        exits.append((section.layer, name))
    return _variant(
        target,
        precision,
        exits[0][1],
        sections[0].layout,
        {file for section in sections for file in section.graph.data_files},
        recipe,
        tuple(
            Exit(layer=layer, graph=name, verification=None, margins=None) for layer, name in exits if layer is not None
        ),
    )


def traced(checkpoint: Checkpoint, folder: Path, options: Options, bar: Bar) -> tuple[list[Variant], dict[str, File]]:
    """Let torch trace the graph of a model that no architecture here describes; fp32 for the CPU only."""
    if set(options.precisions) != {"fp32"}:
        raise CheckpointError(
            f"{checkpoint.architecture} is exported by tracing, for the CPU in fp32 only; other precisions are for"
            f" {', '.join(ARCHITECTURES)}"
        )
    name = "cpu-fp32.onnx"
    with bar("tracing", 1, "model") as progress:
        trace(checkpoint, folder / name)
        progress(1)
    return [_variant("cpu", "fp32", name, "stacked", [TRACED_DATA], None)], {TRACED_DATA: _file(folder / TRACED_DATA)}


class _Verifier:
    """Compares variants with the PyTorch model, and remembers the reference and the figures from try to try.

    What a variant computes depends on the checkpoint and its own recipe only, so its figures hold in the next try.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options, bar: Bar) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._bar = bar
        self._reference: Reference | None = None
        self._verified: dict[Variant, Variant] = {}

    def verified(self, folder: Path, manifest: Manifest) -> Manifest:
        """Return the manifest with the figures of every variant that can be run here, and examples for other hosts.

        Raises VariantError for the first that is outside its limits.
        """
        write_manifest(manifest, folder)
        artifact = open_artifact(folder)
        against = self._reference = self._reference or self._scored(artifact)
        for variant in manifest.variants:
            if variant not in self._verified:
                self._verified[variant] = self._compared(artifact, variant, against)
        variants = tuple(self._verified[variant] for variant in manifest.variants)
        return msgspec.structs.replace(manifest, variants=variants, examples=against.examples)

    def _compared(self, artifact: Artifact, variant: Variant, against: Reference) -> Variant:
        """Return a variant with its figures, or as it is if this host cannot run it."""
        if not can_run(variant):
            return variant
        options, is_decoder = self._options, self._checkpoint.is_decoder
        limits = limits_for(variant.precision, options.max_difference, options.min_tau, is_decoder=is_decoder)
        n_pairs = len(against.texts.pairs)
        with closing(load(artifact, variant)) as scorer, self._bar(variant.name, n_pairs, "pair") as progress:
            return verify(scorer, against, limits, progress)

    def _scored(self, artifact: Artifact) -> Reference:
        """Score the sample, the user's text and the examples with PyTorch."""
        checkpoint, options, rows = self._checkpoint, self._options, RowMaker.open(artifact)
        texts = sample()
        examples = example_pairs(texts, rows, N_EXAMPLES)
        texts = texts + options.texts if options.texts else texts
        with self._bar("PyTorch", len(texts.pairs) + len(examples), "pair") as progress:
            if not checkpoint.is_decoder:
                return reference(checkpoint, rows, texts, examples, progress)
            tokenizer = Tokenizer.from_file(str(artifact.path(TOKENIZER)))
            style = style_for(checkpoint, tokenizer, options.prompt)
            readouts = readouts_of(checkpoint, tokenizer, style, options.cutoff_layers)
            return decoder_reference(checkpoint, rows, style, readouts, texts, examples, progress)


def check_limits(options: Options) -> None:
    """Raise OptionsError for limits that nothing or everything would be within."""
    if (drift := options.max_difference) is not None and not drift > 0:
        raise OptionsError(f"--max-drift {drift:g}: a difference in logits is a number above 0")
    if (tau := options.min_tau) is not None and not -1 <= tau <= 1:
        raise OptionsError(f"--min-tau {tau:g}: Kendall's tau lies between -1 and 1")


def check_is_new(out: Path) -> None:
    """Raise OutputError if there is something of that name already."""
    if out.exists():
        raise OutputError(f"{out} exists; remove it or choose another folder: an artifact is never written over")


def check_has_targets(checkpoint: Checkpoint, targets: Sequence[Target]) -> None:
    """Raise CheckpointError if the checkpoint cannot be written for one of the targets."""
    others = [target for target in targets if target != "cpu"]
    if others and checkpoint.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{checkpoint.architecture} is exported by tracing, for the CPU only, not for {' and '.join(others)};"
            f" GPU targets are for {', '.join(ARCHITECTURES)}"
        )


def check_has_head(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a head of modules after a model that is not written: transformers cannot load it."""
    if checkpoint.saved.head is not None and checkpoint.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{checkpoint.id} is a {checkpoint.architecture} whose score is computed by sentence-transformers' modules"
            f" Pooling, Dense and LayerNorm ({MODULES}); that is not implemented for this class"
        )


def check_has_prompt(checkpoint: Checkpoint, options: Options) -> None:
    """Raise CheckpointError, before anything is computed, if nothing says how a decoder is asked."""
    if checkpoint.is_decoder:
        style_for(checkpoint, read_tokenizer(checkpoint), options.prompt)


def check_has_room(checkpoint: Checkpoint, out: Path, options: Options) -> None:
    """Raise OutputError, before anything is written, if the disk is too small."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    needed, free = _n_bytes(checkpoint, options), shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(f"{parent} has {free / 1e9:.1f} GB free, the artifact takes about {needed / 1e9:.1f} GB")


def check_has_memory(checkpoint: Checkpoint, options: Options) -> None:
    """Raise OutputError, before anything is written, if verifying or calibrating would not fit into memory.

    Writing takes a few hundred MB whatever the size. To verify, ONNX Runtime packs the layers of a variant; the PyTorch
    model of a decoder comes layer by layer, but whole for an encoder and to calibrate, with each layer's weights
    rounded beside it: as float32, and as they are stored for the two graphs. (And with what it reads of the text: 2 GB
    with 568 M parameters, which are not counted, as they depend on the text.)
    """
    layers, all_ = _n_parameters(checkpoint, without_tables=True), _n_parameters(checkpoint)
    variants = asked_variants(options.targets, options.precisions)
    packed = 4 * layers * max(_EXPLICIT_IN_MEMORY if is_explicit(name) else _IN_MEMORY[name[1]] for name in variants)
    needed = {
        "verifying": (packed + (0 if checkpoint.is_decoder else 4 * all_)) * options.is_verified,
        "calibrating": (4 * all_ + 6 * layers) * bool(kinds_of(variants)),
    }
    step = max(needed, key=lambda name: needed[name])
    if (available := available_bytes()) is not None and available < needed[step]:
        advice = "; --no-verify does without" if step == "verifying" else ""
        raise OutputError(
            f"{step} {checkpoint.name} takes about {needed[step] / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB"
            f" are available: use a machine with more{advice}"
        )


def _n_parameters(checkpoint: Checkpoint, *, without_tables: bool = False) -> int:
    names = [name for name in checkpoint.weights.names if not (without_tables and "embed" in name)]
    return sum(int(np.prod(checkpoint.weights.shape(name))) for name in names)


def _n_bytes(checkpoint: Checkpoint, options: Options) -> int:
    variants = asked_variants(options.targets, options.precisions)
    shared = {precision for target, precision in variants if not is_explicit((target, precision))}
    share = sum(_SIZE_OF[precision] for precision in shared) + _EXPLICIT_SIZE * sum(map(is_explicit, variants))
    return int(4 * _n_parameters(checkpoint) * share)


def _calibrations(
    checkpoint: Checkpoint, options: Options, bar: Bar
) -> tuple[dict[Kind, Calibration], list[VariantError]]:
    kinds = kinds_of(asked_variants(options.targets, options.precisions))
    if not kinds:
        return {}, []
    limits = limits_for(kinds[0].precision, options.max_difference, options.min_tau)
    with bar("calibrating", 0, "pair") as progress:
        texts, asked_how = options.calibration or sample(), _asked(checkpoint, options)
        return calibrate(checkpoint, texts, limits, kinds, progress, asked_how)


def _asked(checkpoint: Checkpoint, options: Options) -> Asked | None:
    """Return how a decoder is asked for calibration: behind its last exit."""
    if not checkpoint.is_decoder:
        return None
    tokenizer = read_tokenizer(checkpoint)
    style = style_for(checkpoint, tokenizer, options.prompt)
    readouts = readouts_of(checkpoint, tokenizer, style, options.cutoff_layers)
    return Asked(style=style, readout=readouts[-1])


def _variant(
    target: Target,
    precision: Precision,
    graph: str,
    layout: Layout,
    data: Iterable[str],
    recipe: Recipe | None,
    exits: tuple[Exit, ...] = (),
) -> Variant:
    return Variant(
        target=target,
        precision=precision,
        layout=layout,
        graph=graph,
        data=tuple(sorted(data)),
        verification=None,
        quantization=recipe.summary if recipe else None,
        exits=exits,
        instruction_set=recipe.kind.instruction_set if recipe else None,
    )


def _file(path: Path) -> File:
    return File(n_bytes=path.stat().st_size, sha256=sha256_of(path))
