"""`rankrt mine`: hard negatives from a corpus for the queries of a file."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import MANIFEST
from rankrt.cli import terminal
from rankrt.cli.arguments import Choice as Words
from rankrt.cli.arguments import Command, Kind, Real, Whole, file_argument, file_option, list_option, option
from rankrt.cli.options import load_options
from rankrt_finetune.mining.mine import Choice
from rankrt_finetune.mining.mine import mine as mine_negatives

_BM25 = "bm25"

_logger = logging.getLogger("rankrt")


class _Method(Kind):
    """bm25, an artifact's folder, or an embedding model."""

    name = "method"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the method. A file is not one, so that the option may stand before the file of examples."""
        if str(value).startswith("-") or Path(value).is_file():
            self.fail(f"{value} is neither bm25, nor a folder, nor the id of a model", param, ctx)
        return str(value)


@click.command(
    "mine",
    cls=Command,
    epilog="Example: rankrt mine train.jsonl --corpus corpus.jsonl --with bm25 --negatives 15 -o mined.jsonl",
)
@file_argument("examples", help='Lines or columns of {"query", "pos", "neg"}, or labelled pairs or triplets.')
@file_option("--corpus", required=True, help='Passages: JSON Lines or CSV with "text", or one a line.')
@file_option("-o", "--output", required=True, help="The file to write. If it was begun, it is continued.")
@list_option(
    "--with",
    "methods",
    each=_Method(),
    default=[_BM25],
    group="Search",
    metavar="M...",
    help="What finds passages: bm25 or an embedding model of sentence-transformers. An artifact's folder orders what"
    " is found by its scores, which are written as well.",
)
@option("--negatives", "n_negatives", type=Whole(), default=15, group="Choice", metavar="N", help="Negatives to add.")
@option(
    "--range",
    "ranks",
    default="1-100",
    group="Choice",
    metavar="A-B",
    help="Ranks of the search that are considered.",
)
@option(
    "--pick",
    type=Words(["top", "random"]),
    default="top",
    group="Choice",
    help="Take the best of them, or draw.",
)
@option(
    "--max-score",
    type=Real(0, 1),
    group="Choice",
    metavar="X",
    help="Exclude passages with a higher score. Scores are from 0 to 1, of an artifact or an embedder.",
)
@option(
    "--margin",
    type=Real(0, 1),
    group="Choice",
    metavar="X",
    help="Exclude passages whose score is not this much below that of the query's positives.",
)
@option(
    "--relative-margin",
    type=Real(0, 1),
    group="Choice",
    metavar="X",
    help="The same as a share of the positives' score, such as 0.05.",
)
@option("--seed", type=Whole(0), default=0, group="Choice", metavar="N", help="Seed of --pick random.")
@load_options(without=["revision"])
def mine(
    examples: str,
    corpus: str,
    output: str,
    methods: Sequence[str],
    n_negatives: int,
    ranks: str,
    pick: Any,
    max_score: float | None,
    margin: float | None,
    relative_margin: float | None,
    seed: int,
    load: Mapping[str, Any],
) -> None:
    """Mine, and say how many queries got fewer negatives than asked for."""
    first, last = _ranks(ranks)
    choice = Choice(
        n_negatives=n_negatives,
        first=first,
        last=last,
        pick=pick,
        max_score=max_score,
        margin=margin,
        relative_margin=relative_margin,
        seed=seed,
    )
    embedder, artifact = _methods(methods)
    judge = None if artifact is None else Reranker.load(artifact, **load)
    with terminal.bar(None, "query") as bar:
        mined = mine_negatives(
            Path(examples), Path(corpus), Path(output), choice, embedder=embedder, judge=judge, on_progress=bar.update
        )
    if mined.n_excluded:
        _logger.info("%d passages were excluded, because their score is too high", mined.n_excluded)
    if mined.n_short:
        _logger.info(
            "%d of %d queries got fewer than %d negatives; a wider --range finds more",
            *(mined.n_short, mined.n_examples, n_negatives),
        )


def _ranks(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise click.BadParameter(f"--range {text} is not a range of ranks such as 1-100")
    return int(first), int(last)


def _methods(methods: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the embedder and the artifact among the methods, if there are such."""
    artifacts = [method for method in methods if (Path(method) / MANIFEST).exists()]
    searches = [method for method in methods if method not in artifacts]
    if len(artifacts) > 1 or len(searches) > 1:
        raise InputError(
            f"--with {' '.join(methods)}: give one search (bm25 or an embedding model) and at most one artifact"
        )
    return (
        next((search for search in searches if search != _BM25), None),
        next(iter(artifacts), None),
    )
