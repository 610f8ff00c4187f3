"""The `rankrt` command: a thin skin. Results go to standard output, talk to standard error; errors are one sentence."""

import argparse
import errno
import io
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from rankrt import InputError, RankrtError, Reranker, __version__
from rankrt.artifact.describe import describe
from rankrt.artifact.manifest import INSTRUCTION_SETS, PRECISIONS, Artifact, open_artifact
from rankrt.cli import cache as cache_command
from rankrt.cli import inputs, outputs, streams
from rankrt.cli.arguments import Parser, real, whole
from rankrt.cli.doctor import examine
from rankrt.cli.finding import Finding
from rankrt.cli.inputs import STANDARD_INPUT, Document, Query
from rankrt.cli.scoring import ranked, scored
from rankrt.extras import EXTRAS, commands, load, missing
from rankrt.host.device import DEVICE_HELP, Device
from rankrt.host.host import this_host
from rankrt.llm.progressive import Progressive
from rankrt.loading.choose import place_on_gpu
from rankrt.loading.prepare import n_steps, prepare_for_gpu

_PROGRESSIVE: dict[str | None, Progressive] = {None: False, "margins": True, "exact": "exact"}
_TRACEBACK = "RANKRT_TRACEBACK"
# What a write raises for a full disk, a quota, a limit, a damaged disk, and for a stream that is closed.
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_EPILOG = f"""exit status:
  0    done
  1    an error, explained in a sentence; {_TRACEBACK}=1 shows where it was raised
  2    wrong usage
  130  interrupted with Ctrl-C; what was scored until then is written
  141  the reader of a pipe has left
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, one of those that its help lists."""
    streams.mend()
    _show_notices()
    options = argparse.Namespace()
    try:
        status = _status(list(sys.argv[1:] if arguments is None else arguments), options)
        sys.stdout.flush()
        return status
    except RankrtError as error:
        return _fail(in_words_of_options(str(error), getattr(options, "spelling", {})), error)
    except BrokenPipeError:
        streams.abandon_output()
        return 141
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once, without a traceback
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence, and the traceback for those who ask
        return _fail(_unforeseen(error), error)


def _status(arguments: Sequence[str], options: argparse.Namespace) -> int:
    try:
        parser = _parser(arguments)
        if not arguments:
            parser.print_help(sys.stderr)
            return 2
        parser.parse_args(arguments, options)
    except SystemExit as stop:
        return int(stop.code or 0)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except ModuleNotFoundError as error:
        if options.command not in EXTRAS or isinstance(error, RankrtError):
            raise
        raise missing(options.command, error) from error


def _fail(message: str, error: BaseException) -> int:
    """Say on standard error what went wrong, and return the exit status."""
    with suppress(OSError):
        if os.environ.get(_TRACEBACK):
            traceback.print_exception(error)
        print(f"rankrt: error: {message}", file=sys.stderr, flush=True)
    return 1


def _unforeseen(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _OF_WRITING:
        streams.abandon_output()
        return f"writing failed: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{what:.300}. This is a mistake in rankrt {__version__}; please report it with what {_TRACEBACK}=1 prints and"
        " with the output of `rankrt doctor`"
    )


def in_words_of_options(message: str, spelling: Mapping[str, str]) -> str:
    """Return a message of the library with its parameters as the options that are typed.

    `spelling` has the options by the parameters' names. Of names that are English words only name=value is replaced.
    """
    for name, option in spelling.items():
        message = re.sub(rf"\b{name}=(['\"]?)([^\s'\",;)]+)\1", rf"{option} \2", message)
        if "_" in name:
            message = re.sub(rf"(?<![\w/.-]){name}(?![\w/.])", option, message)
    return re.sub(r"\(or None (for [^)]*)\)", r"(or leave it out \1)", message)


def rerank(options: argparse.Namespace) -> int:
    """Order documents by how well they answer a query, or each of several."""
    queries = inputs.with_documents(_queries(options), _documents(options))
    style = outputs.Style.of(
        options.output_format,
        queries,
        names_queries=options.queries is not None,
        has_spans=options.long_documents == "chunk",
    )
    n_documents = sum(len(query.documents or ()) for query in queries)
    with _load(options) as reranker, _bar(n_documents, "document") as bar:
        answers = ranked(
            reranker,
            queries,
            top_n=options.top_n,
            normalize=options.normalize,
            refine=options.refine,
            progressive=_PROGRESSIVE[options.progressive],
            on_progress=None if bar.disable else bar.update,
        )
        for line in style.lines(answers):
            _print(line, bar)
    return 0


def score(options: argparse.Namespace) -> int:
    """Score the pairs of a file, line by line."""
    n_pairs = _count_lines(options.pairs)
    with _open(options.pairs) as file, _load(options) as reranker, _bar(n_pairs, "pair") as bar:
        pairs = inputs.read_pairs(file, options.pairs, options.format)
        blocks = scored(reranker, pairs, normalize=options.normalize, on_progress=bar.update)
        is_empty = True
        for lines in outputs.score_lines(blocks, options.output_format):
            _print(lines, bar)  # a block at once, so that Ctrl-C loses nothing of one that was scored
            is_empty = False
    if is_empty:
        _note_empty(options.pairs, "pairs")
    return 0


def _queries(options: argparse.Namespace) -> list[Query]:
    if options.queries is None:
        try:
            options.query.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"--query {options.query!a} is not UTF-8; encode it as UTF-8") from error
        return [Query(text=options.query, place="--query")]
    with _open(options.queries) as file:
        queries = inputs.read_queries(file, options.queries)
    if not queries:
        _note_empty(options.queries, "queries")
    return queries


def _documents(options: argparse.Namespace) -> list[Document] | None:
    if options.documents is None:
        if options.column or options.format:
            raise InputError("--column and --format are for the file of --documents, which is not given")
        return None
    if options.documents == options.queries == STANDARD_INPUT:
        raise InputError("--queries and --documents are both standard input, which can be read only once")
    with _open(options.documents) as file:
        documents = inputs.read_documents(file, options.documents, options.format, options.column)
    if not documents:
        _note_empty(options.documents, "documents")
    return documents


def _open(name: str) -> io.BufferedReader:
    file = inputs.open_input(name)
    if file.isatty():
        print("rankrt: reading from the terminal; end with Ctrl-D", file=sys.stderr)
    return file


def _print(lines: str, bar: Any) -> None:
    """Write lines at once, so that they are not lost if a later one fails, and apart from the bar on a terminal."""
    bar.clear()
    print(f"{lines}\n", end="", flush=True)  # in one piece, also where Ctrl-C comes between


def _bar(total: int | None, unit: str) -> Any:
    return tqdm(total=total, unit=unit, leave=False, disable=not streams.is_terminal())


def _note_empty(name: str, what: str) -> None:
    print(f"rankrt: {name} has no {what}, so there is nothing to score", file=sys.stderr)


def info(options: argparse.Namespace) -> int:
    """Say what an artifact holds and how it was verified."""
    artifact = open_artifact(options.artifact)
    if options.json:
        print(json.dumps({"identity": artifact.identity, **msgspec.to_builtins(artifact.manifest)}, ensure_ascii=False))
    else:
        print(describe(artifact))
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Make an artifact's variants ready for this host; for a GPU also verify them there."""
    device = Device.parse(options.device)
    if device is not None and device.is_gpu:
        return _prepare_for_gpu(open_artifact(options.artifact), device, options)
    asked = {name: getattr(options, name) for name in ("device", "precision", "max_length")}
    with Reranker.load(options.artifact, **asked) as reranker:
        print(f"{reranker.variant.name} is ready on this host")
    return 0


def _prepare_for_gpu(artifact: Artifact, device: Device, options: argparse.Namespace) -> int:
    for placement in place_on_gpu(artifact, device, options.precision, this_host()):
        name, total = placement.variant.name, n_steps(artifact, device, options.max_length)
        with tqdm(desc=name, total=total, disable=not streams.is_terminal()) as bar:

            def show(done: str, bar: Any = bar) -> None:
                bar.set_postfix_str(f"{done} is ready")
                bar.update()

            found = prepare_for_gpu(placement, max_length=options.max_length, progress=show)
        rows = "rows of any length" if found.max_length is None else f"rows of up to {found.max_length} tokens"
        print(
            f"{name} is ready on {found.key.depends_on['gpu']} for {rows}: {found.n_examples} examples differ from"
            f" PyTorch by up to {found.max_difference:.1e} (limit {found.limit:.1e})"
        )
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Examine this host, and an artifact on it; the exit status is 1 if something is wrong."""
    findings: list[Finding] = []
    for finding in examine(options.artifact, Device.parse(options.device)):
        findings.append(finding)
        if not options.json:
            print(f"{finding.verdict:>4}  {finding.name:<10} {finding.detail}", flush=True)
    if options.json:
        print(json.dumps([finding.as_json() for finding in findings], ensure_ascii=False))
    return int(any(finding.verdict == "fail" for finding in findings))


@dataclass(frozen=True, slots=True)
class _Command:
    """A subcommand: what it is for, what it takes, what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(
        prog="rankrt",
        description="Rerankers compiled for ONNX Runtime: export once, score anywhere, without torch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rankrt {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, point in commands().items():
        subparser = subparsers.add_parser(name, help=EXTRAS[name].help, description=EXTRAS[name].help)
        if name == called:  # another part is imported only when it is called
            module: Any = load(point)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, spelling=_spelling(subparser))
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, spelling=_spelling(subparser))
    return parser


def _spelling(parser: Parser) -> dict[str, str]:
    spelling = parser.spelling
    return {**spelling, "n_threads": "--threads"} if "--threads" in spelling.values() else spelling


def _rerank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an artifact's folder, or a hub id")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--query", metavar="TEXT", help="what to rank the documents by")
    query.add_argument(
        "--queries",
        metavar="FILE",
        help='several queries: a text a line, or JSON Lines or CSV with "query"; an "id" is kept, and "documents" of'
        " its own take the place of --documents; - for standard input",
    )
    parser.add_argument(
        "--documents",
        metavar="FILE",
        help='text, JSON or CSV: one document a line, or strings or objects with "text"; - for standard input',
    )
    parser.add_argument(
        "--format",
        choices=inputs.FORMATS,
        help="of the documents; default: by the file's name (.jsonl, .json, .csv, .tsv), else text",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="the key or column that holds a document's text, or a column's number if the file has no header;"
        " default: text, document, passage or content",
    )
    parser.add_argument("--top-n", type=whole(), metavar="N", help="print the best N only")
    parser.add_argument(
        "--refine",
        choices=PRECISIONS,
        metavar="P",
        help="score documents that may be among the top N again in this precision",
    )
    parser.add_argument(
        "--progressive",
        nargs="?",
        choices=["margins", "exact"],
        const="margins",
        help="for a layerwise model: run documents only as far as the top N needs; exact: check those that stopped",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--output-format",
        choices=outputs.RANKING_FORMATS,
        default="text",
        help="text: a table (default); json: one object a query; jsonl, csv: one hit a line; trec: a TREC run",
    )
    output.add_argument(
        "--json", action="store_const", const="json", dest="output_format", help="short for --output-format json"
    )
    _load_options(parser)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an artifact's folder, or a hub id")
    parser.add_argument(
        "pairs",
        metavar="PAIRS",
        help='JSON Lines, JSON or CSV with "query" and "passage"; other fields are kept; - for standard input',
    )
    parser.add_argument(
        "--format",
        choices=[format for format in inputs.FORMATS if format != "text"],
        help="of the pairs; default: by the file's name (.jsonl, .json, .csv, .tsv), else jsonl",
    )
    parser.add_argument("--output-format", choices=outputs.SCORE_FORMATS, default="jsonl", help="default: jsonl")
    _load_options(parser)


def _load_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `Reranker.load` takes besides the model."""
    parser.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--precision", choices=["auto", *PRECISIONS], default="auto", help="default: auto, the best that is verified"
    )
    parser.add_argument(
        "--instruction-set",
        choices=INSTRUCTION_SETS,
        help="the int8 graph to take; default: the one for this processor",
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--threads", type=whole(), dest="n_threads", metavar="N", help="default: the physical cores that may be used"
    )
    parser.add_argument(
        "--max-length", type=whole(), metavar="N", help="tokens of a row; default: 512 or the model's limit"
    )
    parser.add_argument(
        "--query-max-length",
        type=whole(),
        metavar="N",
        help="of a query; default: three quarters of --max-length",
    )
    parser.add_argument(
        "--truncation",
        choices=["only_passage", "longest_first"],
        default="only_passage",
        help="what loses tokens first where a row is too long; default: only_passage",
    )
    parser.add_argument(
        "--long-documents",
        choices=["truncate", "chunk"],
        default="truncate",
        help="truncate (default): score the beginning; chunk: score overlapping windows and take the best",
    )
    parser.add_argument(
        "--cutoff-layer", type=whole(), metavar="N", help="for a layerwise model: the layer whose score is returned"
    )
    parser.add_argument(
        "--gpu-memory-gb", type=_gigabytes, metavar="N", help="the most that CUDA may take; default: no limit"
    )
    parser.add_argument("--normalize", action="store_true", help="print the sigmoid of the logits, in (0, 1)")
    parser.add_argument(
        "--no-prepare", action="store_false", dest="prepare", help="do not use the cache of prepared models"
    )


def _gigabytes(text: str) -> float:
    if (number := real()(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def _artifact_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an artifact's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an artifact's folder")
    parser.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="default: the best for a CPU; all that the artifact has for a GPU",
    )
    parser.add_argument(
        "--max-length", type=whole(), metavar="N", help="tokens of a row; default: 512 or the model's limit"
    )


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, nargs="?", help="an artifact's folder, to be checked to the byte")
    parser.add_argument("--device", default="cpu", metavar="D", help="a GPU to examine as well: cuda, tensorrt:1, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")


_COMMANDS = {
    "rerank": _Command("order documents by how well they answer a query", _rerank_arguments, rerank),
    "score": _Command("score pairs, line by line", _score_arguments, score),
    "info": _Command("say what an artifact holds and how it was verified", _artifact_arguments, info),
    "prepare": _Command(
        "make an artifact's variants ready for this host, and verify them on a GPU", _prepare_arguments, prepare
    ),
    "doctor": _Command("examine this host, and an artifact on it", _doctor_arguments, doctor),
    "cache": _Command(cache_command.HELP, cache_command.add_arguments, cache_command.run),
}


def _load(options: argparse.Namespace) -> Reranker:
    of_load = ("device", "precision", "instruction_set", "revision", "n_threads", "max_length", "prepare")
    names = (*of_load, "cutoff_layer", "gpu_memory_gb")
    rules = ("query_max_length", "truncation", "long_documents")
    return Reranker.load(options.model, **{name: getattr(options, name) for name in names + rules})


def _count_lines(name: str) -> int | None:
    """Return how many pairs a file may have, for the progress; None if that is not known without reading it twice."""
    if name == STANDARD_INPUT or not Path(name).is_file() or not streams.is_terminal():
        return None
    with open(name, "rb") as file:
        return sum(1 for _ in file)


def _show_notices() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("rankrt: %(message)s"))
    logger = logging.getLogger("rankrt")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]


if __name__ == "__main__":
    sys.exit(main())
