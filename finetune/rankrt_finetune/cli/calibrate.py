"""The `rankrt calibrate` command."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rankrt import ArtifactError, InputError, Reranker
from rankrt.artifact.calibration import CALIBRATION, CALIBRATION_VERSION, Calibration, FittedTo, calibration_bytes
from rankrt.artifact.manifest import open_artifact
from rankrt.cli import terminal
from rankrt.cli.arguments import Choice, Command, Real, file_argument, file_option, list_option, option
from rankrt.cli.options import cutoff_layer, load_options
from rankrt_finetune.calibrate import fit
from rankrt_finetune.calibrate.labelled import read_labelled
from rankrt_finetune.calibrate.report import page, text_report


@click.command(
    "calibrate",
    cls=Command,
    epilog="Example: rankrt calibrate ./bge-m3 --data labelled.jsonl --report calibration.html",
)
@file_argument("artifact", help="The artifact's folder. The calibration is written into it, over an older one.")
@file_option(
    "--data",
    required=True,
    group="Input",
    help='Labelled pairs: lines or columns of {"query", "passage", "label"}, {"query", "pos", "neg"} or triplets.',
)
@option(
    "--method",
    type=Choice(fit.METHODS),
    default="platt",
    group="Calibration",
    help="platt fits a sigmoid; isotonic fits steps, and needs a thousand pairs or more to be better.",
)
@list_option(
    "--wanted-precision",
    "precisions",
    each=Real(0, 1),
    default=["0.8", "0.9", "0.95"],
    group="Report",
    metavar="X...",
    help="Shares of relevant pairs among those that are kept; the report has a threshold for each.",
)
@list_option(
    "--wanted-recall",
    "recalls",
    each=Real(0, 1),
    default=["0.8", "0.9", "0.95"],
    group="Report",
    metavar="X...",
    help="Shares of the relevant pairs that are kept; the report has a threshold for each.",
)
@file_option("--report", group="Report", help="HTML page to write, with the reliability diagram.")
@cutoff_layer
@load_options(without=["revision"])
def calibrate(
    artifact: str,
    data: str,
    method: fit.Method,
    precisions: Sequence[float],
    recalls: Sequence[float],
    report: str | None,
    cutoff_layer: int | None,
    load: Mapping[str, Any],
) -> None:
    """Fit a map from logits to probabilities, write it into the artifact, and print how well it fits."""
    folder = Path(artifact).expanduser()
    identity = open_artifact(folder).identity
    if data == "-":
        raise InputError("--data is standard input, but the file is read twice; write it to a file first")
    labelled = read_labelled(data)
    with (
        Reranker.load(folder, cutoff_layer=cutoff_layer, **load) as reranker,
        terminal.bar(len(labelled.pairs), "pair") as bar,
    ):
        logits = reranker.evaluate(labelled.pairs, on_progress=bar.update).logits
        name, variant = reranker.artifact.manifest.name, reranker.variant.name
    fitted = fit.fit(logits, labelled.is_relevant, labelled.query_of_pair, method)
    calibration = Calibration(
        format_version=CALIBRATION_VERSION,
        artifact=identity,
        variant=variant,
        cutoff_layer=cutoff_layer,
        map=fitted.map,
        data=FittedTo(
            sha256=labelled.sha256,
            n_queries=labelled.n_queries,
            n_pairs=len(labelled.pairs),
            n_relevant=int(labelled.is_relevant.sum()),
        ),
        error_before=fitted.before.error,
        error_after=fitted.after.error,
    )
    found = list(fit.thresholds(logits, labelled.is_relevant, precisions, recalls))
    _write(folder / CALIBRATION, calibration_bytes(calibration))
    if report is not None:
        _write(Path(report), page(name, calibration, fitted, found).encode())
    for line in text_report(name, calibration, fitted, found):
        print(line)


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all. Raises ArtifactError if it cannot be written."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ArtifactError(f"{path} cannot be written: {error.strerror or error}") from error
