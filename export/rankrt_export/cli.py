"""The `rankrt export` command."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from rankrt.artifact.describe import describe
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import PRECISIONS, TARGETS, Precision
from rankrt.artifact.source import Hub
from rankrt.backends.openvino import why_not_bf16
from rankrt.cli.arguments import Choice, Command, Real, Whole, file_argument, file_option, list_option, option
from rankrt.host.cpu import this_machine
from rankrt_export.decoders.styles import STYLES
from rankrt_export.errors import OptionsError
from rankrt_export.job.options import Options, precisions_of

# Not a target of the runtime: plain ONNX for other runtimes.
_PORTABLE = "portable"
# The precisions that are calibrated.
_CALIBRATED = [precision for precision, row in PRECISIONS.items() if row.is_calibrated]


@click.command(
    "export",
    cls=Command,
    epilog="Example: rankrt export BAAI/bge-reranker-v2-m3 ./bge-m3 --precision fp32 int8",
)
@file_argument("model", help="A folder with a Hugging Face checkpoint, or a Hub id such as BAAI/bge-reranker-v2-m3.")
@file_argument("out", help="The folder to write; it must not exist.")
@option(
    "--revision",
    group="Checkpoint",
    metavar="R",
    help="Branch, tag or commit of a Hub repository.",
    show_default="the newest",
)
@option(
    "--prompt",
    type=Choice(STYLES),
    group="Checkpoint",
    help="How a decoder is asked. It is needed where neither the model's files nor its name say it.",
)
@file_option(
    "--prompt-file",
    group="Checkpoint",
    help="The same in your own words: TOML with text, instructed and answers (docs/llm-rerankers.md).",
)
@option(
    "--label",
    group="Checkpoint",
    metavar="NAME",
    help="The label of a classifier with two labels that says that a passage answers the query. A score is its logit"
    " less the other's.",
)
@list_option(
    "--precision",
    "precisions",
    each=Choice(PRECISIONS),
    default=["fp32"],
    group="Variants",
    metavar="P...",
    help="Precisions to write, with commas or spaces:"
    f" {', '.join(f'{name} ({row.help})' for name, row in PRECISIONS.items())}.",
)
@list_option(
    "--target",
    "targets",
    each=Choice([*TARGETS, _PORTABLE]),
    default=["cpu"],
    group="Variants",
    metavar="T...",
    help="Where it will run. Each target gets those of the precisions that it has:"
    f" {'; '.join(f'{target} {precisions_of(target)}' for target in TARGETS)}. TensorRT is experimental."
    " portable is plain ONNX for other runtimes (fp32, fp16, int8), in a folder of its own.",
)
@list_option(
    "--cutoff-layers",
    each=Whole(),
    group="Variants",
    metavar="N...",
    help="Layers of a layerwise or lightweight model after which scores can be read.",
    show_default="every fourth that has a head; of a lightweight model the last",
)
@list_option(
    "--compress-layers",
    each=Whole(),
    group="Variants",
    metavar="N...",
    help="Layers of a lightweight model after which tokens of a passage are merged, before the last cutoff layer.",
    show_default="8",
)
@option(
    "--compress-ratio",
    type=Whole(),
    group="Variants",
    metavar="N",
    help="How many tokens of a passage become one after each of these layers: 1, 2, 4 or 8.",
    show_default="1, which merges none",
)
@file_option(
    "--calibration",
    group="Calibration",
    help=f'Text to calibrate {" and ".join(_CALIBRATED)} on: lines of {{"query", "pos", "neg"}}.',
    show_default="a sample that rankrt brings",
)
@option(
    "--max-drift",
    type=Real(0),
    group="Calibration",
    metavar="X",
    help="Largest difference in logits, for precisions below fp32.",
    show_default="depends on the precision",
)
@option(
    "--min-tau",
    type=Real(-1, 1),
    group="Calibration",
    metavar="X",
    help="Smallest mean Kendall tau of a query, for precisions below fp32.",
    show_default="depends on the precision",
)
@file_option(
    "--verify-with",
    group="Verification",
    help='Text to verify on as well: lines of {"query", "pos", "neg"}.',
)
@option(
    "--no-verify",
    is_flag=True,
    group="Verification",
    help="Do not compare with PyTorch. --precision auto will not load the result.",
)
@option("--push", "repository", group="Hub", metavar="REPO", help="Repository to upload the result to, with a card.")
def export(
    model: str,
    out: str,
    revision: str | None,
    prompt: str | None,
    prompt_file: str | None,
    label: str | None,
    precisions: Sequence[Any],
    targets: Sequence[Any],
    cutoff_layers: Sequence[int] | None,
    compress_layers: Sequence[int] | None,
    compress_ratio: int | None,
    calibration: str | None,
    max_drift: float | None,
    min_tau: float | None,
    verify_with: str | None,
    no_verify: bool,
    repository: str | None,
) -> None:
    """Export, verify, and print what was made. Raises OptionsError for an option that would change nothing."""
    limits = [name for name, value in (("--max-drift", max_drift), ("--min-tau", min_tau)) if value is not None]
    if _PORTABLE in targets and (others := [target for target in targets if target != _PORTABLE]):
        raise OptionsError(f"--target portable writes a folder of its own. Export {', '.join(others)} into another one")
    if prompt and prompt_file:
        raise OptionsError("--prompt and --prompt-file both say how the model is asked. Leave one of them out")
    if revision is not None and Path(model).expanduser().is_dir():
        raise OptionsError(f"--revision {revision} is for a Hub repository, but {model} is a folder. Leave it out")
    _check_calibration(precisions, limits, calibration=calibration)
    if no_verify:
        _check_unverified(precisions, limits, verify_with=verify_with)
    from rankrt_export import pipeline, push
    from rankrt_export.decoders.prompt_files import read_prompt_file
    from rankrt_export.errors import PartialError
    from rankrt_export.text.texts import read_texts

    options = pipeline.Options(
        precisions=tuple(dict.fromkeys(precisions)),
        targets=tuple(target for target in dict.fromkeys(targets) if target != _PORTABLE),
        texts=read_texts(Path(verify_with)) if verify_with else None,
        calibration=read_texts(Path(calibration)) if calibration else None,
        is_verified=not no_verify,
        max_difference=max_drift,
        min_tau=min_tau,
        label=label,
        cutoff_layers=cutoff_layers,
        compress_layers=compress_layers,
        compress_ratio=compress_ratio,
        prompt=read_prompt_file(Path(prompt_file)) if prompt_file else prompt,
    )
    if repository is not None:
        push.check_login(repository)
    if _PORTABLE in targets:
        _export_portable(model, Path(out), options, Hub(revision=revision), repository)
        return
    try:
        artifact = pipeline.export(model, Path(out), options, hub=Hub(revision=revision), bar=_bar)
    except PartialError as error:
        print(describe(error.artifact))
        raise
    print(describe(artifact))
    if options.is_verified:
        for notice in notices(artifact):
            print(notice, file=sys.stderr)
    if repository is not None:
        print(f"pushed to {push.push(artifact.folder, repository, push.artifact_card(artifact))}")


def _export_portable(model: str, out: Path, options: Options, hub: Hub, repository: str | None) -> None:
    """Export plain ONNX, and print what was made."""
    from rankrt_export.portable.export import export_portable
    from rankrt_export.push import push

    found = export_portable(model, out, options, hub=hub, bar=_bar)
    for file in found.files:
        compared = "not verified"
        if (figures := file.verification) is not None:
            compared = f"max diff {figures.max_difference:.1e}, tau {figures.mean_tau:.4f}"
        print(f"{file.path:<28} {file.n_bytes / 1e6:>8,.0f} MB  {compared}")
    if repository is not None:
        print(f"pushed to {push(found.folder, repository)}")


def _check_calibration(precisions: Sequence[Precision], limits: Sequence[str], *, calibration: str | None) -> None:
    """Raise OptionsError for an option of calibration that no precision has a use for."""
    if calibration is not None and not set(precisions) & set(_CALIBRATED):
        raise OptionsError(
            f"--calibration is for {' and '.join(_CALIBRATED)}, but --precision is {', '.join(precisions)}. Leave it"
            " out, or add one of them"
        )
    if limits and all(PRECISIONS[precision].is_exact for precision in precisions):
        raise OptionsError(f"{limits[0]} is for precisions below fp32, whose own limits are fixed. Leave it out")


def _check_unverified(precisions: Sequence[Precision], limits: Sequence[str], *, verify_with: str | None) -> None:
    """Raise OptionsError for an option that has no effect if nothing is verified."""
    # Calibration keeps to the limits too, whether its result is verified or not.
    given = [] if set(precisions) & set(_CALIBRATED) else [*limits]
    given += [] if verify_with is None else ["--verify-with"]
    if given:
        raise OptionsError(f"{given[0]} has no effect with --no-verify. Leave one of them out")


def notices(artifact: Artifact) -> Iterator[str]:
    """Say which variants could not be verified here, and where they can be."""
    for variant in artifact.manifest.variants:
        if variant.verification is None:
            if variant.key.is_for_openvino:
                reason, option = why_not_bf16(this_machine()), f"--precision {variant.precision}"
            else:
                reason, option = "there is no CUDA device here", f"--device {variant.target}"
            yield (
                f"rankrt: {variant.name} is not verified, because {reason}. On a host that can run it: rankrt prepare"
                f" {artifact.folder} {option}"
            )


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    with tqdm(
        desc=f"{title:>10}",
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as bar:
        yield lambda n_done: bar.update(n_done) and None
