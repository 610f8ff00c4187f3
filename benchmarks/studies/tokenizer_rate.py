"""The tokenizers' tokens a second on real text, which limit what a GPU gets.

    python -m benchmarks.studies.tokenizer_rate --data ../shared/data --pairs 1024 TOKENIZER_JSON

It compares rankrt's own tokenizer over a mapped vocabulary, text by text, with the library's batch encoding on one
thread and on all. Pairs are questions with BM25's candidates, in twelve languages. As in a reranker, a query is
tokenized once, and a passage each time that it occurs. The values are medians of passes in turn, in tokens of the
passages.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

from rankrt.host.child import child_command
from rankrt.host.cpu import this_machine
from rankrt.text.tokenizers import LibraryTokenizer, TextTokenizer
from rankrt.text.unigram import UnigramTokenizer


def main() -> None:
    options = _parser().parse_args()
    if options.only is None:
        print(json.dumps(_measured_in_turn(options), indent=2))
        return
    tokenizer = _open(options.only, options.tokenizer)
    print(json.dumps({"tokens_per_second": _rate(tokenizer, passages(options.data, options.pairs))}))


def passages(data: Path, n: int) -> list[str]:
    """Return so many candidate passages of questions, languages in turn."""
    by_language = [_candidates(path) for path in sorted(data.glob("xquad/candidates_*_top20.jsonl"))]
    n_each = -(-n // len(by_language))
    return [text for texts in by_language for text in islice(texts, n_each)][:n]


def _candidates(path: Path) -> Sequence[str]:
    documents = path.with_name(path.name.replace("candidates", "docs").replace("_top20", ""))
    texts = {d["id"]: d["text"] for d in map(json.loads, documents.read_text(encoding="utf-8").splitlines())}
    questions = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [texts[i] for question in questions for i in question["cand"]]


# The library reads its thread settings once a process, so each way to tokenize has processes of its own.
_WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "rankrt, mapped vocabulary": ("unigram", {}),
    "tokenizers, one thread": ("library", {"TOKENIZERS_PARALLELISM": "false"}),
    "tokenizers, all threads": ("library", {"TOKENIZERS_PARALLELISM": "true"}),
}


def _measured_in_turn(options: argparse.Namespace) -> dict[str, object]:
    rates: dict[str, list[float]] = {name: [] for name in _WAYS}
    for _ in range(options.rounds):
        for name, (kind, environment) in _WAYS.items():
            rates[name].append(_in_process(kind, environment))
    machine = this_machine()
    return {
        "processor": machine.processor,
        "cores": machine.cores.n,
        "pairs": options.pairs,
        "tokens_per_second": {name: round(median(found)) for name, found in rates.items()},
    }


def _in_process(kind: str, environment: Mapping[str, str]) -> float:
    process = subprocess.run(
        child_command("benchmarks.studies.tokenizer_rate", *sys.argv[1:], "--only", kind),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(process.stdout)["tokens_per_second"])


def _open(kind: str, path: Path) -> TextTokenizer:
    if kind == "library":
        return LibraryTokenizer.open(path)
    tokenizer = UnigramTokenizer.read(path)
    assert tokenizer is not None, f"{path} is not of XLM-R's kind"
    return tokenizer


def _rate(tokenizer: TextTokenizer, texts: Sequence[str]) -> float:
    tokenizer.ids(texts[:64])
    started = time.perf_counter()
    n_tokens = sum(map(len, tokenizer.ids(texts)))
    return n_tokens / (time.perf_counter() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_JSON")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["unigram", "library"], help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
