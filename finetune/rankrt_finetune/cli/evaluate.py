"""`rankrt evaluate`: what rerankers score on judged data, side by side."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from rankrt import InputError
from rankrt.artifact.precisions import PRECISIONS
from rankrt.cli import streams, terminal
from rankrt.cli.arguments import Choice, Command, Kind, Whole, file_argument, file_option, list_option, option
from rankrt.cli.options import load_options
from rankrt.cli.rerank import PROGRESSIVE
from rankrt.options import LoadOptions
from rankrt.text.options import Rules
from rankrt_finetune.evaluation import report
from rankrt_finetune.evaluation.artifacts import Wanted
from rankrt_finetune.evaluation.datasets import DEFAULT_TOP_K, Files, read_dataset
from rankrt_finetune.evaluation.documents import Documents
from rankrt_finetune.evaluation.evaluation import Evaluation
from rankrt_finetune.evaluation.evaluation import evaluate as evaluate_systems
from rankrt_finetune.evaluation.kept import alone_in
from rankrt_finetune.evaluation.measures import DEFAULT, Measures
from rankrt_finetune.evaluation.systems import systems_of

_logger = logging.getLogger("rankrt")


class _Measure(Kind):
    """The name of a measure, so that the option may stand before a model."""

    name = "measure"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises BadParameter for an unknown one."""
        try:
            Measures.of([str(value)])
        except InputError as error:
            self.fail(str(error), param, ctx)
        return str(value)


@click.command(
    "evaluate",
    cls=Command,
    epilog="Example: rankrt evaluate ./tuned.rk ./bge-m3 --data beir:./scifact --precision fp32 int8 --refine fp32",
)
@file_argument(
    "models",
    nargs=-1,
    help="Artifacts, Hub ids, and folders of checkpoints, which PyTorch runs. The first is what others are compared"
    " with. torch:ID is a checkpoint of the Hub. Without a model only the first stage is measured.",
)
@file_option(
    "--data",
    group="Data",
    metavar="D",
    help='beir:FOLDER, flagembedding:FOLDER, or jsonl:FILE with {"query", "pos", "neg"}.',
)
@option("--split", default="test", group="Data", metavar="NAME", help="Part of the data: test, dev, train.")
@file_option("--corpus", group="Data", help="Documents as JSON Lines or TSV, in place of --data.")
@file_option("--queries", group="Data", help="Queries as JSON Lines or TSV, in place of --data.")
@file_option("--qrels", group="Data", help="Judgements in TREC's or BEIR's columns, in place of --data.")
@file_option("--run", group="Data", help="A TREC run with the candidates.", show_default="BM25 finds them")
@option(
    "--top-k",
    type=Whole(),
    group="Data",
    metavar="N",
    help="Most candidates of a query.",
    show_default=f"{DEFAULT_TOP_K} of BM25, all of a run",
)
@list_option(
    "--precision",
    "precisions",
    each=Choice(PRECISIONS),
    group="Systems",
    metavar="P...",
    help=f"Precisions of each artifact, a row each: {', '.join(PRECISIONS)}.",
    show_default="the best that is verified",
)
@option(
    "--refine",
    type=Choice(PRECISIONS),
    group="Systems",
    help="Add a row for each other precision: the best N are scored again in this one.",
)
@option(
    "--progressive",
    type=Choice([name for name in PROGRESSIVE if name is not None]),
    implied="margins",
    group="Systems",
    help="Add a row for each layerwise model: documents that cannot be among the best N stop early.",
)
@list_option(
    "--cutoff-layers",
    each=Whole(),
    group="Systems",
    metavar="N...",
    help="Add a row for each of these layers of a layerwise model.",
)
@option(
    "--top-n",
    type=Whole(),
    group="Systems",
    metavar="N",
    help="The N of --refine and --progressive.",
    show_default="the deepest cutoff of the metrics",
)
@list_option(
    "--metrics",
    each=_Measure(),
    default=list(DEFAULT),
    group="Output",
    metavar="M...",
    help="Measures of ir-measures, the main one first, with commas or spaces.",
)
@option("--json", "as_json", is_flag=True, group="Output", help="Print JSON in place of the table.")
@option("--markdown", "as_markdown", is_flag=True, group="Output", help="Print Markdown in place of the table.")
@file_option("--html", group="Output", help="Write a page with pictures.")
@file_option("--per-query", group="Output", help="Write each query's measures as JSON Lines.")
@file_option("--trec-run", group="Output", metavar="FOLDER", help="Write each row's rankings as a TREC run.")
@file_option(
    "--output",
    group="Output",
    metavar="FOLDER",
    help="Keep scores there as they are made. The same command continues after an interruption.",
)
@load_options(without=["precision", "instruction_set", "revision"])
def evaluate(
    models: Sequence[str],
    data: str | None,
    split: str,
    corpus: str | None,
    queries: str | None,
    qrels: str | None,
    run: str | None,
    top_k: int | None,
    precisions: Sequence[Any] | None,
    refine: Any,
    progressive: str | None,
    cutoff_layers: Sequence[int] | None,
    top_n: int | None,
    metrics: Sequence[str],
    as_json: bool,
    as_markdown: bool,
    html: str | None,
    per_query: str | None,
    trec_run: str | None,
    output: str | None,
    load: Mapping[str, Any],
) -> None:
    """Evaluate, print the table, and write what is asked for."""
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other", click.get_current_context())
    if html is not None:
        import_module("rankrt_finetune.evaluation.pictures")  # what it lacks is said before hours of scoring
    source = _source(data, corpus, queries, qrels)
    measures = Measures.of(metrics)
    wanted = Wanted(
        precisions=tuple(dict.fromkeys(precisions or ())),
        refine=refine,
        progressive=PROGRESSIVE[progressive],
        cutoff_layers=tuple(cutoff_layers or ()),
        top_n=top_n or measures.deepest,
    )
    if top_n is not None and refine is None and progressive is None:
        raise InputError(f"top_n={top_n} is for --refine and --progressive, and neither is given. Leave it out")
    rules = {name: value for name, value in load.items() if name in Rules.__dataclass_fields__}
    options = LoadOptions(**{name: value for name, value in load.items() if name not in rules})
    systems = systems_of(models, wanted, options, rules)
    with _kept_in(output) as folder, Documents() as documents:
        with terminal.bar(None, "document") as bar:
            candidates = None if run is None else _file("--run", run)
            dataset = read_dataset(source, documents, split=split, run=candidates, top_k=top_k, on_read=bar.update)
        try:
            found = evaluate_systems(dataset, systems, measures, folder=folder / "scores", bar=_bar)
        except KeyboardInterrupt:
            if output is not None:
                _logger.info("the scores so far are in %s; the same command continues", output)
            raise
        click.echo(_shown(found, as_json=as_json, as_markdown=as_markdown), nl=False)
        _write(found, html=html, per_query=per_query, trec_run=trec_run)


def _source(data: str | None, corpus: str | None, queries: str | None, qrels: str | None) -> str | Files:
    """Return where the data is. Raises InputError unless it is --data, or the three files."""
    given = {"--corpus": corpus, "--queries": queries, "--qrels": qrels}
    there = [name for name, value in given.items() if value is not None]
    if data is not None and there:
        raise InputError(f"--data and {there[0]} both say what the data is. Leave one of them out")
    if data is not None:
        return data
    if corpus is None or queries is None or qrels is None:
        missing = [name for name in given if name not in there]
        raise InputError(f"give --data, or {', '.join(given)}" + (f"; {missing[0]} is missing" if there else ""))
    return Files(
        name=Path(qrels).name.partition(".")[0],
        corpus=_file("--corpus", corpus),
        queries=_file("--queries", queries),
        qrels=_file("--qrels", qrels),
    )


def _file(name: str, value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise InputError(f"{name} {value}: there is no such file")
    return path


@contextmanager
def _kept_in(output: str | None) -> Iterator[Path]:
    """Yield the folder for scores: the one that is named, or one that vanishes."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="rankrt-evaluate-") as folder:
            yield Path(folder)
        return
    with alone_in(Path(output).expanduser()):
        yield Path(output).expanduser()


@contextmanager
def _bar(title: str, n_pairs: int) -> Iterator[Callable[[int], object]]:
    with tqdm(desc=title, total=n_pairs, unit="pair", leave=False, disable=not streams.is_terminal()) as bar:
        yield bar.update


def _shown(found: Evaluation, *, as_json: bool, as_markdown: bool) -> str:
    if as_json:
        return json.dumps(report.record(found), indent=2, ensure_ascii=False) + "\n"
    return report.markdown(found) if as_markdown else report.text(found)


def _write(found: Evaluation, *, html: str | None, per_query: str | None, trec_run: str | None) -> None:
    if html is not None:
        _at(html).write_text(report.page(found), encoding="utf-8")
    if per_query is not None:
        with _at(per_query).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in report.per_query(found))
    if trec_run is not None:
        for name, lines in report.runs(found):
            with _at(str(Path(trec_run) / name)).open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)


def _at(name: str) -> Path:
    """Return the path of a file to write, in a folder that exists then."""
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
