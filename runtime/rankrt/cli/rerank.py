"""`rankrt rerank`: documents in the order in which they answer a query, or each of several."""

from collections.abc import Mapping
from typing import Any

import click

from rankrt import InputError, Reranker
from rankrt.artifact.precisions import PRECISIONS
from rankrt.cli import inputs, outputs, terminal
from rankrt.cli.arguments import Choice, Command, Whole, file_argument, file_option, option
from rankrt.cli.inputs import STANDARD_INPUT, Document, Query
from rankrt.cli.options import calibrated, cutoff_layer, load_options, normalize, score_threshold
from rankrt.cli.scoring import ranked
from rankrt.llm.progressive import Progressive

PROGRESSIVE: dict[str | None, Progressive] = {None: False, "margins": True, "exact": "exact"}


@click.command(
    "rerank",
    cls=Command,
    epilog='Example: rankrt rerank ./bge-m3 --query "what is a panda?" --documents passages.txt --top-n 3',
)
@file_argument("model", help="An artifact's folder, or a Hub id.")
@option("--query", group="Input", metavar="TEXT", help="Text to rank documents by.")
@file_option(
    "--queries",
    group="Input",
    help='Several queries: a text a line, or JSON Lines or CSV with "query". An "id" is kept. "documents" of a query'
    " take the place of --documents. - is standard input.",
)
@file_option(
    "--documents",
    group="Input",
    help='Text, JSON or CSV: one document a line, or strings or objects with "text". - is standard input.',
)
@option(
    "--format",
    type=Choice(inputs.FORMATS),
    group="Input",
    help="Format of the documents.",
    show_default="by the file's name (.jsonl, .json, .csv, .tsv), else text",
)
@option(
    "--column",
    group="Input",
    metavar="NAME",
    help="Key or column that holds a document's text, or its number if the file has no header.",
    show_default="text, document, passage or content",
)
@option("--top-n", type=Whole(), group="Output", metavar="N", help="Print the best N only.", show_default="all")
@normalize
@calibrated
@score_threshold
@option(
    "--output-format",
    type=Choice(outputs.RANKING_FORMATS),
    group="Output",
    help="text is a table, json one object a query, jsonl and csv one hit a line, trec a TREC run.",
    show_default="text",
)
@option("--json", "as_json", is_flag=True, group="Output", help="Short for --output-format json.")
@option(
    "--refine",
    type=Choice(PRECISIONS),
    group="Ranking",
    help="Score the documents that may be among the best N again in this precision.",
)
@option(
    "--progressive",
    type=Choice(["margins", "exact"]),
    implied="margins",
    group="Ranking",
    help="Run each document of a layerwise model only as far as the best N need it. exact checks those that stopped"
    " afterwards; margins does not, and is what a bare --progressive means.",
)
@cutoff_layer
@load_options()
def rerank(
    model: str,
    query: str | None,
    queries: str | None,
    documents: str | None,
    format: inputs.Format | None,
    column: str | None,
    top_n: int | None,
    normalize: bool,
    calibrated: bool,
    score_threshold: float | None,
    output_format: outputs.RankingFormat | None,
    as_json: bool,
    refine: Any,
    progressive: str | None,
    cutoff_layer: int | None,
    load: Mapping[str, Any],
) -> None:
    """Print a ranking of the documents for each query."""
    if (query is None) == (queries is None):
        raise click.UsageError("give one of --query and --queries", click.get_current_context())
    if as_json and output_format is not None:
        raise click.UsageError("--json and --output-format exclude each other", click.get_current_context())
    found = inputs.with_documents(_queries(query, queries), _documents(documents, queries, format, column))
    style = outputs.Style.of(
        "json" if as_json else output_format or "text",
        found,
        names_queries=queries is not None,
        has_spans=load["long_documents"] == "chunk",
    )
    n_documents = sum(len(query.documents or ()) for query in found)
    with (
        Reranker.load(model, cutoff_layer=cutoff_layer, **load) as reranker,
        terminal.bar(n_documents, "document") as bar,
    ):
        answers = ranked(
            reranker,
            found,
            top_n=top_n,
            normalize=normalize,
            calibrated=calibrated,
            score_threshold=score_threshold,
            refine=refine,
            progressive=PROGRESSIVE[progressive],
            on_progress=None if bar.disable else bar.update,
        )
        for line in style.lines(answers):
            terminal.write(line, bar)


def _queries(query: str | None, queries: str | None) -> list[Query]:
    if query is not None:
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"--query {query!a} is not UTF-8; encode it as UTF-8") from error
        return [Query(text=query, place="--query")]
    assert queries is not None
    with terminal.open_input(queries) as file:
        found = inputs.read_queries(file, queries)
    if not found:
        terminal.note_empty(queries, "queries")
    return found


def _documents(
    documents: str | None, queries: str | None, format: inputs.Format | None, column: str | None
) -> list[Document] | None:
    if documents is None:
        if column or format:
            raise InputError("--column and --format are for the file of --documents, which is not given")
        return None
    if documents == queries == STANDARD_INPUT:
        raise InputError("--queries and --documents are both standard input, which can be read only once")
    with terminal.open_input(documents) as file:
        found = inputs.read_documents(file, documents, format, column)
    if not found:
        terminal.note_empty(documents, "documents")
    return found
