"""The `rankrt` command: a thin skin. Results go to standard output, talk to standard error; errors are one sentence."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import msgspec
from tqdm import tqdm

from rankrt import Hit, InputError, Ranking, RankrtError, Reranker, __version__, cache_command
from rankrt.artifact import INSTRUCTION_SETS, PRECISIONS, open_artifact
from rankrt.build import build as build_variant
from rankrt.build import steps
from rankrt.describe import describe
from rankrt.devices import DEVICE_HELP, Device
from rankrt.doctor import examine
from rankrt.extras import EXTRAS, commands, load, missing
from rankrt.finding import Finding
from rankrt.placement import variants_for
from rankrt.progressive import Progressive
from rankrt.reranker import sigmoid
from rankrt.tokenizer import Pair

# Enough rows for the planner to fill its runs well, few enough that scores come out as they are made.
_BLOCK_PAIRS = 1024
_PROGRESSIVE: dict[str | None, Progressive] = {None: False, "margins": True, "exact": "exact"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for an error that is explained, 2 for wrong usage."""
    _show_notices()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(arguments).parse_args(arguments)
        return _run(options)
    except RankrtError as error:
        print(f"rankrt: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read us has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except ModuleNotFoundError as error:
        if options.command not in EXTRAS or isinstance(error, RankrtError):
            raise
        raise missing(options.command, error) from error


def rerank(options: argparse.Namespace) -> int:
    """Order the documents of a file by how well they answer a query."""
    documents = _read_documents(options.documents)
    with _load(options) as reranker:
        ranking = reranker.rank(
            options.query,
            [text for _, text in documents],
            top_n=options.top_n,
            normalize=options.normalize,
            refine=options.refine,
            progressive=_PROGRESSIVE[options.progressive],
        )
    lines = [number for number, _ in documents]
    write = _print_ranking_json if options.json else _print_ranking
    write(ranking, lines)
    return 0


def score(options: argparse.Namespace) -> int:
    """Score the pairs of a file, line by line."""
    with _open(options.pairs) as file, _load(options) as reranker:
        pairs = _read_pairs(file, options.pairs)
        with tqdm(total=_count_lines(options.pairs), unit="pair", disable=not sys.stderr.isatty()) as bar:
            while block := list(islice(pairs, _BLOCK_PAIRS)):
                scored = reranker.evaluate(block)
                scores = sigmoid(scored.logits) if options.normalize else scored.logits
                for value, truncated in zip(scores, scored.truncated, strict=True):
                    print(json.dumps({"score": float(value), "truncated": bool(truncated)}))
                sys.stdout.flush()
                bar.update(len(block))
    return 0


def info(options: argparse.Namespace) -> int:
    """Say what an artifact holds and how it was verified."""
    artifact = open_artifact(options.artifact)
    if options.json:
        print(json.dumps({"identity": artifact.identity, **msgspec.to_builtins(artifact.manifest)}, ensure_ascii=False))
    else:
        print(describe(artifact))
    return 0


def build(options: argparse.Namespace) -> int:
    """Build and verify an artifact's variants for a GPU of this host."""
    artifact, device = open_artifact(options.artifact), Device(options.target, options.device)
    for variant in variants_for(artifact, device, options.precision):
        n_steps = steps(artifact, device, options.max_length)
        with tqdm(desc=variant.name, total=n_steps, disable=not sys.stderr.isatty()) as bar:

            def show(done: str, bar: Any = bar) -> None:
                bar.set_postfix_str(f"{done} is ready")
                bar.update()

            found = build_variant(artifact, variant, device, max_length=options.max_length, progress=show)
        rows = "rows of any length" if found.max_length is None else f"rows of up to {found.max_length} tokens"
        print(
            f"{variant.name} is ready on {found.built_for.gpu} for {rows}: {found.n_examples} examples differ from"
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


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rankrt", description="Rerankers compiled for ONNX Runtime: export once, score anywhere, without torch."
    )
    parser.add_argument("--version", action="version", version=f"rankrt {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, point in commands().items():
        subparser = subparsers.add_parser(name, help=EXTRAS[name].help, description=EXTRAS[name].help)
        if name in arguments:  # another part is imported only when it is called
            module: Any = load(point)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _rerank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an artifact's folder, or a hub id")
    parser.add_argument("--query", required=True)
    parser.add_argument(
        "--documents",
        required=True,
        metavar="FILE",
        help='one document a line, - for standard input; *.jsonl: a string or {"text": ...} a line',
    )
    parser.add_argument("--top-n", type=int, metavar="N", help="print the best N only")
    parser.add_argument(
        "--refine", choices=PRECISIONS, metavar="P", help="score again in this precision who may be among the top N"
    )
    parser.add_argument(
        "--progressive",
        nargs="?",
        choices=["margins", "exact"],
        const="margins",
        help="of a layerwise model: run documents only as far as the top N needs; exact: check those that stopped",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _load_options(parser)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an artifact's folder, or a hub id")
    parser.add_argument("pairs", metavar="PAIRS", help='lines of {"query": ..., "passage": ...}; - for standard input')
    _load_options(parser)


def _load_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `Reranker.load` takes besides the model."""
    parser.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto")
    parser.add_argument(
        "--instruction-set", choices=INSTRUCTION_SETS, help="of int8; default: what this processor is fastest with"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--threads", type=int, dest="n_threads", metavar="N", help="default: the usable physical cores")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a row; default: 512 or the model's limit"
    )
    parser.add_argument("--query-max-length", type=int, metavar="N", help="default: three quarters of --max-length")
    parser.add_argument("--truncation", choices=["only_passage", "longest_first"], default="only_passage")
    parser.add_argument("--long-documents", choices=["truncate", "chunk"], default="truncate")
    parser.add_argument(
        "--cutoff-layer", type=int, metavar="N", help="of a layerwise model: read scores behind this layer"
    )
    parser.add_argument(
        "--gpu-memory-gb", type=float, metavar="N", help="the most that CUDA may take; default: no limit"
    )
    parser.add_argument("--normalize", action="store_true", help="sigmoid of the logits, in (0, 1)")
    parser.add_argument(
        "--no-prepare", action="store_false", dest="prepare", help="do not use the prepared-model cache"
    )


def _artifact_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an artifact's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an artifact's folder")
    parser.add_argument(
        "--target",
        choices=["cuda", "tensorrt"],
        required=True,
        help="tensorrt: build its engines and verify them; cuda: only verify",
    )
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the GPU's number; default: 0")
    parser.add_argument(
        "--precision", choices=["auto", *PRECISIONS], default="auto", help="default: all that there are"
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a row; default: 512 or the model's limit"
    )


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, nargs="?", help="an artifact's folder, to be checked to the byte")
    parser.add_argument("--device", default="cpu", metavar="D", help="a GPU to examine as well: cuda, tensorrt:1, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")


_COMMANDS = {
    "rerank": _Command("order documents by how well they answer a query", _rerank_arguments, rerank),
    "score": _Command("score pairs, line by line", _score_arguments, score),
    "info": _Command("say what an artifact holds and how it was verified", _artifact_arguments, info),
    "build": _Command("build and verify an artifact's variants for a GPU of this host", _build_arguments, build),
    "doctor": _Command("examine this host, and an artifact on it", _doctor_arguments, doctor),
    "cache": _Command(cache_command.HELP, cache_command.add_arguments, cache_command.run),
}


def _load(options: argparse.Namespace) -> Reranker:
    of_load = ("device", "precision", "instruction_set", "revision", "n_threads", "max_length", "prepare")
    names = (*of_load, "cutoff_layer", "gpu_memory_gb")
    rules = ("query_max_length", "truncation", "long_documents")
    return Reranker.load(options.model, **{name: getattr(options, name) for name in names + rules})


def _read_documents(name: str) -> list[tuple[int, str]]:
    """Return the documents of a file with their line numbers, counted from 0; blank lines are none."""
    decode = _json_document if name.endswith(".jsonl") else _plain_document
    with _open(name) as file:
        lines = [(number, line.rstrip("\n")) for number, line in enumerate(file)]
    return [(number, decode(line, f"{name}, line {number + 1}")) for number, line in lines if line.strip()]


def _plain_document(line: str, place: str) -> str:
    return line


def _json_document(line: str, place: str) -> str:
    content = _parse_json(line, place)
    text = content.get("text") if isinstance(content, dict) else content
    if not isinstance(text, str):
        raise InputError(f'{place}: expected a string or {{"text": ...}}, got {line:.80}')
    return text


def _read_pairs(lines: Iterable[str], name: str) -> Iterator[Pair]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(f"{name}, line {number} is blank; every line is a pair, so that scores and lines agree")
        content = _parse_json(line, f"{name}, line {number}")
        query, passage = (content.get(key) if isinstance(content, dict) else None for key in ("query", "passage"))
        if not isinstance(query, str) or not isinstance(passage, str) or not query.strip():
            raise InputError(
                f'{name}, line {number}: expected {{"query": ..., "passage": ...}} with a query that is not empty,'
                f" got {line.strip():.80}"
            )
        yield query, passage


def _parse_json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error


def _open(name: str) -> TextIO:
    try:
        return open(0 if name == "-" else name, encoding="utf-8", closefd=name != "-")
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error


def _count_lines(name: str) -> int | None:
    if name == "-" or not Path(name).is_file():
        return None
    with open(name, "rb") as file:
        return sum(1 for _ in file)


def _print_ranking(ranking: Ranking, lines: Sequence[int]) -> None:
    for rank, hit in enumerate(ranking, 1):
        mark = " [truncated]" if hit.truncated else ""
        print(f"{rank:>3}  {hit.score:>9.4f}  #{lines[hit.index]:<5} {hit.document}{mark}")


def _print_ranking_json(ranking: Ranking, lines: Sequence[int]) -> None:
    answer = {
        "results": [_hit_as_json(hit, lines) for hit in ranking],
        "n_documents": ranking.n_documents,
        "n_tokens": ranking.n_tokens,
        "n_refined": ranking.n_refined,
        "n_saved_tokens": ranking.n_saved_tokens,
        **({"progress": asdict(ranking.progress)} if ranking.progress else {}),
        "query_truncated": ranking.query_truncated,
    }
    print(json.dumps(answer, ensure_ascii=False))


def _hit_as_json(hit: Hit, lines: Sequence[int]) -> dict[str, Any]:
    span = {} if hit.span is None else {"span": hit.span}
    return {
        "index": lines[hit.index],
        "score": hit.score,
        "document": hit.document,
        "truncated": hit.truncated,
        **span,
    }


def _show_notices() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("rankrt: %(message)s"))
    logger = logging.getLogger("rankrt")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]


if __name__ == "__main__":
    sys.exit(main())
