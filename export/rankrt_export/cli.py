"""The `rankrt export` command."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from rankrt.artifact.describe import describe
from rankrt.artifact.manifest import PRECISIONS, Artifact, Target
from rankrt.artifact.source import Hub
from rankrt.cli.arguments import Several, real, whole
from rankrt_export.decoders.prompts import STYLES
from rankrt_export.errors import OptionsError

# What is calibrated, of all precisions.
_CALIBRATED = ("int8", "fp8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `rankrt export` takes."""
    parser.add_argument(
        "model", help="a folder with a Hugging Face checkpoint, or a hub id such as BAAI/bge-reranker-v2-m3"
    )
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--precision",
        action=Several,
        values=PRECISIONS,
        default=["fp32"],
        metavar="P,...",
        help="fp32 (default), fp16, w8 (8-bit weights only), int8, fp8, int4: one or several, with commas or spaces",
    )
    parser.add_argument(
        "--target",
        action=Several,
        values=get_args(Target),
        default=["cpu"],
        metavar="T,...",
        help="cpu (default), cuda, tensorrt: each gets those of the precisions that it has: GPUs fp32 and fp16,"
        " TensorRT int8 and fp8 too",
    )
    parser.add_argument(
        "--verify-with", type=Path, metavar="FILE", help='verify on this text too: lines of {"query", "pos", "neg"}'
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="calibrate int8 and fp8 on this text, in the same format"
    )
    parser.add_argument(
        "--cutoff-layers",
        action=Several,
        convert=whole(),
        metavar="N,...",
        help="for a layerwise model: scores can be read after these layers; default: every fourth that has a head",
    )
    parser.add_argument(
        "--prompt", choices=STYLES, help="how a decoder is asked, where neither its files nor its name say it"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare with PyTorch; precision auto will not load the result"
    )
    parser.add_argument(
        "--max-drift", type=real(0), metavar="X", help="largest difference in logits, for precisions below fp32"
    )
    parser.add_argument(
        "--min-tau", type=real(-1, 1), metavar="X", help="smallest mean Kendall tau of a query, for the same precisions"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, verify, and print what was made. Raises OptionsError for an option that would change nothing."""
    check(arguments)
    from rankrt_export.errors import PartialError
    from rankrt_export.pipeline import Options, export
    from rankrt_export.text.texts import read_texts

    options = Options(
        precisions=tuple(dict.fromkeys(arguments.precision)),
        targets=tuple(dict.fromkeys(arguments.target)),
        texts=read_texts(arguments.verify_with) if arguments.verify_with else None,
        calibration=read_texts(arguments.calibration) if arguments.calibration else None,
        is_verified=not arguments.no_verify,
        max_difference=arguments.max_drift,
        min_tau=arguments.min_tau,
        cutoff_layers=arguments.cutoff_layers,
        prompt=arguments.prompt,
    )
    try:
        artifact = export(arguments.model, arguments.out, options, hub=Hub(revision=arguments.revision), bar=_bar)
    except PartialError as error:
        print(describe(error.artifact))
        raise
    print(describe(artifact))
    if options.is_verified:
        for notice in notices(artifact):
            print(notice, file=sys.stderr)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise OptionsError for an option without effect."""
    folder, precisions = Path(arguments.model).expanduser(), arguments.precision
    if arguments.revision is not None and folder.is_dir():
        raise OptionsError(
            f"--revision {arguments.revision} is for a hub repository, but {arguments.model} is a folder. Leave it out"
        )
    if arguments.calibration is not None and not set(precisions) & set(_CALIBRATED):
        raise OptionsError(
            f"--calibration is for {' and '.join(_CALIBRATED)}, but --precision is {', '.join(precisions)}. Leave it"
            " out, or add one of them"
        )
    limits = {"--max-drift": arguments.max_drift, "--min-tau": arguments.min_tau}
    given = [option for option, value in limits.items() if value is not None]
    if given and set(precisions) == {"fp32"}:
        raise OptionsError(f"{given[0]} is for precisions below fp32, whose own limits are fixed. Leave it out")
    if set(precisions) & set(_CALIBRATED):
        given = []  # calibration keeps to the limits too, whether its result is verified or not
    given += ["--verify-with"] * (arguments.verify_with is not None)
    if given and arguments.no_verify:
        raise OptionsError(f"{given[0]} has no effect with --no-verify. Leave one of them out")


def notices(artifact: Artifact) -> Iterator[str]:
    """Say which variants could not be verified here, and where they can be."""
    for variant in artifact.manifest.variants:
        if variant.verification is None:
            yield (
                f"rankrt: {variant.name} is not verified: no CUDA device here; on a host that has one: rankrt prepare"
                f" {artifact.folder} --device {variant.target}"
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
