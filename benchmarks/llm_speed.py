"""The LLM rerankers beside FlagEmbedding's own classes, in turn, in one process, on mixed lengths.

    python -m benchmarks.llm_speed --kind gemma --checkpoint ./gemma-6 --artifact ./artifact --data ../shared/data

Needs FlagEmbedding 1.4 (and so transformers 4). Both have the same threads and the same text. FlagEmbedding runs the
first batch of a call twice and throws the first away; that one is not counted. The last line on standard output is the
record as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.statistics import ratio
from benchmarks.workloads import Source, read
from rankrt import Reranker
from rankrt.machine import this_machine
from rankrt.tokenizer import Pair

_PAUSE_SECONDS = 0.3  # longer than any library's threads spin after a call


def main() -> None:
    options = _options()
    workload = Source(read(options.data)[1], options.artifact / "tokenizer.json").make("mixed", options.passages)
    pairs = [(workload.query, passage) for passage in workload.passages]
    n_threads = this_machine().cores.n
    flag = FlagEmbedding(options.kind, str(options.checkpoint), n_threads, options.batch_size)
    shared, unshared = (
        Reranker.load(options.artifact, precision="fp32", n_threads=n_threads, share_prefix=is_shared)
        for is_shared in (True, False)
    )
    systems: dict[str, Callable[[Sequence[Pair]], tuple[float, np.ndarray]]] = {
        "rankrt": lambda pairs: timed(shared, pairs),
        "rankrt, prefix not shared": lambda pairs: timed(unshared, pairs),
        "FlagEmbedding": flag.score,
    }
    seconds, scores = in_turn(systems, pairs, options.rounds)
    lengths = shared.encode(pairs).lengths
    record = {
        "benchmark": "llm_speed",
        "model": options.checkpoint.name,
        "machine": {"processor": this_machine().processor, "n_threads": n_threads},
        "n_passages": len(pairs),
        "mean_tokens": round(float(lengths.mean()), 1),
        "max_tokens": int(lengths.max()),
        "n_rounds": options.rounds,
        "batch_size_of_flagembedding": options.batch_size,
        "median_seconds": {name: round(median(found), 3) for name, found in seconds.items()},
        "times_rankrt": {name: round(ratio(found, seconds["rankrt"]), 3) for name, found in seconds.items()},
        "max_difference": float(np.abs(scores["rankrt"] - scores["FlagEmbedding"]).max()),
    }
    print(json.dumps(record))


class FlagEmbedding:
    """FlagEmbedding's class, in fp32 on the CPU."""

    def __init__(self, kind: str, checkpoint: str, n_threads: int, batch_size: int) -> None:
        import torch
        from FlagEmbedding import FlagLLMReranker, LayerWiseFlagLLMReranker

        torch.set_num_threads(n_threads)
        reranker = {"gemma": FlagLLMReranker, "minicpm": LayerWiseFlagLLMReranker}[kind]
        last = {"minicpm": {"cutoff_layers": [_n_layers(checkpoint)]}}.get(kind, {})
        self._reranker = reranker(checkpoint, devices="cpu", batch_size=batch_size, **last)
        self._reranker.tokenizer.pad_token = self._reranker.tokenizer.pad_token or "</s>"
        self._reranker.model.config.use_cache = False
        self._forward = self._reranker.model.forward
        self._calls: list[float] = []
        self._reranker.model.forward = self._timed_forward

    def score(self, pairs: Sequence[Pair]) -> tuple[float, np.ndarray]:
        """Return the seconds of a call, without the batch whose result it throws away, and the scores."""
        self._calls.clear()
        started = time.perf_counter()
        scores = self._reranker.compute_score([list(pair) for pair in pairs])
        return time.perf_counter() - started - self._calls[0], np.array(scores)

    def _timed_forward(self, *arguments: Any, **inputs: Any) -> Any:
        started = time.perf_counter()
        found = self._forward(*arguments, **inputs)
        self._calls.append(time.perf_counter() - started)
        return found


def timed(reranker: Reranker, pairs: Sequence[Pair]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    scores = reranker.score(pairs)
    return time.perf_counter() - started, scores


def in_turn(
    systems: dict[str, Callable[[Sequence[Pair]], tuple[float, np.ndarray]]], pairs: Sequence[Pair], n_rounds: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    scores = {}
    for i in range(n_rounds + 1):
        for name, score in systems.items():
            took, scores[name] = score(pairs)
            print(f"{name:<28} {took:8.2f} s", file=sys.stderr)
            if i:  # the first round warms up
                seconds[name].append(took)
            time.sleep(_PAUSE_SECONDS)
    return seconds, scores


def _n_layers(checkpoint: str) -> int:
    return int(json.loads((Path(checkpoint) / "config.json").read_text())["num_hidden_layers"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["gemma", "minicpm"], required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder above xquad/")
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4, help="FlagEmbedding's; 256,000 logits a token need memory")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
