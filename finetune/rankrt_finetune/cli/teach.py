"""`rankrt teach`: a teacher's scores for every passage of a file of examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rankrt import Reranker
from rankrt.cli import terminal
from rankrt.cli.arguments import Command, file_argument, file_option
from rankrt.cli.options import cutoff_layer as cutoff_layer_option
from rankrt.cli.options import load_options
from rankrt_finetune.teaching import teach as teach_examples


@click.command("teach", cls=Command, epilog="Example: rankrt teach mined.jsonl --teacher ./bge-m3 -o taught.jsonl")
@file_argument("examples", help='Lines or columns of {"query", "pos", "neg"}, or labelled pairs or triplets.')
@file_option("--teacher", required=True, help="An artifact's folder, or a Hub id.")
@file_option("-o", "--output", required=True, help="The file to write. If it was begun, it is continued.")
@cutoff_layer_option
@load_options()
def teach(examples: str, teacher: str, output: str, cutoff_layer: int | None, load: Mapping[str, Any]) -> None:
    """Score all pairs of the file; logits become pos_scores and neg_scores."""
    with Reranker.load(teacher, cutoff_layer=cutoff_layer, **load) as reranker, terminal.bar(None, "query") as bar:
        teach_examples(Path(examples), reranker, Path(output), on_progress=bar.update)
