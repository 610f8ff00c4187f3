"""`rankrt score`: a score for each pair of a file, line by line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rankrt import Reranker
from rankrt.cli import inputs, outputs, streams, terminal
from rankrt.cli.arguments import Choice, Command, file_argument, option
from rankrt.cli.options import cutoff_layer, load_options
from rankrt.cli.scoring import scored


@click.command("score", cls=Command, epilog="Example: rankrt score ./bge-m3 pairs.jsonl > scores.jsonl")
@file_argument("model", help="An artifact's folder, or a Hub id.")
@file_argument(
    "pairs",
    help='JSON Lines, JSON or CSV with "query" and "passage". Other fields are kept. - is standard input.',
)
@option(
    "--format",
    type=Choice(format for format in inputs.FORMATS if format != "text"),
    group="Input",
    help="Format of the pairs.",
    show_default="by the file's name (.jsonl, .json, .csv, .tsv), else jsonl",
)
@option("--normalize", is_flag=True, group="Output", help="Print the sigmoid of the logits, from 0 to 1.")
@option(
    "--output-format",
    type=Choice(outputs.SCORE_FORMATS),
    default="jsonl",
    group="Output",
    help="Format of the scores.",
)
@cutoff_layer
@load_options()
def score(
    model: str,
    pairs: str,
    format: inputs.Format | None,
    normalize: bool,
    output_format: outputs.ScoreFormat,
    cutoff_layer: int | None,
    load: Mapping[str, Any],
) -> None:
    """Print the score of each pair, in the file's order."""
    n_pairs = _count_lines(pairs)
    is_empty = True
    with (
        terminal.open_input(pairs) as file,
        Reranker.load(model, cutoff_layer=cutoff_layer, **load) as reranker,
        terminal.bar(n_pairs, "pair") as bar,
    ):
        blocks = scored(reranker, inputs.read_pairs(file, pairs, format), normalize=normalize, on_progress=bar.update)
        for lines in outputs.score_lines(blocks, output_format):
            terminal.write(lines, bar)  # a block at once, so that Ctrl-C loses nothing of one that was scored
            is_empty = False
    if is_empty:
        terminal.note_empty(pairs, "pairs")


def _count_lines(name: str) -> int | None:
    """Return how many pairs a file may have, for the progress; None if that is not known without reading it twice."""
    if name == inputs.STANDARD_INPUT or not Path(name).is_file() or not streams.is_terminal():
        return None
    with open(name, "rb") as file:
        return sum(1 for _ in file)
