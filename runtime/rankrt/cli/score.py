"""`rankrt score`: a score for each pair of a file. Files may have any size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from rankrt import InputError, Reranker
from rankrt.cli import inputs, streams, terminal
from rankrt.cli.arguments import Choice, Command, Whole, file_argument, file_option, option
from rankrt.cli.bulk import cluster, job
from rankrt.cli.bulk.chunks import Names
from rankrt.cli.bulk.scoring import score_chunks, score_in_processes
from rankrt.cli.bulk.selection import Selection
from rankrt.cli.options import calibrated, cutoff_layer, load_options, normalize, score_threshold
from rankrt.cli.outputs import ScoreFormat
from rankrt.host.host import this_host
from rankrt.scale import Scale, check_threshold


@click.command(
    "score",
    cls=Command,
    epilog="Example: rankrt score ./bge-m3 pairs.parquet --out scores.parquet --top-n 10",
)
@file_argument("model", help="An artifact's folder, or a Hub id.")
@file_argument(
    "pairs",
    help='JSON Lines, JSON, CSV, TSV, Parquet or Arrow with "query" and "passage". Other fields are kept. - is'
    " standard input. A folder of Parquet or Arrow files is scored into another folder.",
)
@option(
    "--format",
    type=Choice(job.INPUT_FORMATS),
    group="Input",
    help="Format of the pairs.",
    show_default="by the file's name, else jsonl",
)
@option("--query-column", group="Input", metavar="NAME", default="query", help="Key or column of the query.")
@option("--passage-column", group="Input", metavar="NAME", default="passage", help="Key or column of the passage.")
@file_option(
    "--out",
    group="Output",
    help="File to write, in the format that its name tells, or a folder for a folder. If the command is killed, the"
    " same command continues.",
)
@option("--top-n", type=Whole(), group="Output", metavar="N", help="Keep the best N of each query.", show_default="all")
@normalize
@calibrated
@score_threshold
@option("--keep-text", is_flag=True, group="Output", help="Write query and passage, too.")
@option(
    "--output-format",
    type=Choice(job.OUTPUT_FORMATS),
    group="Output",
    help="Format of the scores. Parquet and Arrow need --out.",
    show_default="by the name of --out, else jsonl",
)
@option(
    "--processes",
    "n_processes",
    type=Whole(),
    group="Model",
    metavar="N",
    help="Processes that score on the CPU, with one copy of the weights. Each has its share of the cores.",
    show_default="1, with --ray one a node or GPU",
)
@option(
    "--ray",
    group="Model",
    metavar="ADDRESS",
    help="Score on this Ray cluster: auto, HOST:PORT or ray://HOST:PORT. --threads are those of a process there.",
)
@cutoff_layer
@load_options()
def score(
    model: str,
    pairs: str,
    format: job.InputFormat | None,
    query_column: str,
    passage_column: str,
    out: str | None,
    top_n: int | None,
    normalize: bool,
    calibrated: bool,
    score_threshold: float | None,
    keep_text: bool,
    output_format: job.OutputFormat | None,
    n_processes: int | None,
    ray: str | None,
    cutoff_layer: int | None,
    load: Mapping[str, Any],
) -> None:
    """Print the score of each pair, or write it into a file, in the order of the pairs."""
    if query_column == passage_column:
        raise InputError(f"--query-column and --passage-column are both {query_column!r}")
    path = None if out is None else Path(out)
    _check_places(Path(pairs), path, output_format)
    source = job.Source(name=pairs, format=format, names=Names(query=query_column, passage=passage_column))
    n_threads = load["n_threads"]
    if ray is not None:
        load = {**load, "n_threads": None}  # those of the actors are not this host's
    elif n_processes is not None and n_processes > 1 and n_threads is None:
        load = {**load, "n_threads": max(1, this_host().machine.cores.n // n_processes)}
    with Reranker.load(model, cutoff_layer=cutoff_layer, **load) as reranker:
        selection = Selection(
            scale=Scale.of(reranker.artifact, cutoff_layer, normalize=normalize, calibrated=calibrated),
            threshold=score_threshold,
            top_n=top_n,
            has_text=keep_text,
        )
        check_threshold(score_threshold, selection.scale.kind)
        with _scoring(reranker, ray, n_processes, n_threads) as score:
            if path is None:
                n_pairs = _print(reranker, source, selection, job.line_format(output_format), score)
            elif Path(pairs).is_dir():
                n_pairs = job.score_to_folder(reranker, source, selection, path, output_format, score)
            else:
                format_of_scores = job.file_format(path, output_format)
                n_pairs = job.score_to_file(reranker, source, selection, path, format_of_scores, score)
    if not n_pairs:
        terminal.note_empty(pairs, "pairs")


def _check_places(pairs: Path, out: Path | None, format: job.OutputFormat | None) -> None:
    """Raise InputError for an output that cannot be written, before a model is loaded."""
    if out is None:
        if pairs.is_dir():
            raise InputError(f"{pairs} is a folder; name the folder for its scores with --out")
        job.line_format(format)
        return
    if not pairs.is_dir():
        job.file_format(out, format)
    job.check_output(out)


@contextmanager
def _scoring(
    reranker: Reranker, ray: str | None, n_processes: int | None, n_threads: int | None
) -> Iterator[job.Scoring]:
    """Yield the way to score chunks: in this process, in several of this host, or in those of a cluster."""
    if ray is not None:
        with cluster.connected(ray):
            yield partial(cluster.score_on_cluster, reranker, n_processes, n_threads)
    elif n_processes in (None, 1):
        yield partial(score_chunks, reranker)
    elif reranker.device.is_gpu:
        raise InputError(f"n_processes={n_processes} is for the CPU; one process is enough for a GPU")
    else:
        yield partial(score_in_processes, reranker, n_processes)


def _print(
    reranker: Reranker, source: job.Source, selection: Selection, format: ScoreFormat, score: job.Scoring
) -> int:
    """Print lines as they are there, and return how many pairs were scored."""
    with terminal.bar(_count_lines(source.name), "pair") as bar:
        counter = terminal.Counter(bar)
        # A chunk at once, so that Ctrl-C loses nothing of one that was scored.
        for lines in job.score_to_lines(reranker, source, selection, format, score, counter):
            terminal.write(lines, bar)
        return counter.n_done


def _count_lines(name: str) -> int | None:
    """Return how many pairs a file may have, for the progress. None is for those that cannot be counted by lines."""
    is_text = name.lower().endswith((".jsonl", ".ndjson", ".csv", ".tsv"))
    if name == inputs.STANDARD_INPUT or not is_text or not Path(name).is_file() or not streams.is_terminal():
        return None
    with open(name, "rb") as file:
        return sum(1 for _ in file)
