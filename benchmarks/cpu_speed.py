"""The main claim, measured: rankrt beside PyTorch and sentence-transformers on a CPU.

    python -m benchmarks.cpu_speed --checkpoint ./checkpoint --artifact ./artifact --data ../shared/data/xquad

Every system is in a process of its own with the same thread budget; they take turns, call by call, so that a machine
whose speed drifts drifts for all of them. A ratio is the median of the ratios of neighbouring calls. The last line on
standard output is the record as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.worker import Answer, Worker
from benchmarks.workloads import Workload, mixed, paragraphs
from rankrt import Reranker
from rankrt.machine import this_machine

SYSTEMS = ("rankrt", "pytorch-sdpa", "sentence-transformers")
_PAUSE_SECONDS = 0.3  # longer than any library's threads spin after a call


def main() -> None:
    options = options_of(__doc__)
    machine = this_machine()
    n_threads = options.threads or machine.cores.n
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, options, n_threads)) for name in SYSTEMS}
        reranker = stack.enter_context(Reranker.load(options.artifact, truncation="longest_first", prepare=False))
        speeds = [_speed(workers, make(options.data, "en", 32), reranker, options) for make in (mixed, paragraphs)]
    record = {
        "benchmark": "cpu_speed",
        "model": options.checkpoint.name,
        "machine": {"processor": machine.processor, "instructions": machine.instructions, "n_threads": n_threads},
        "versions": {name: worker.versions for name, worker in workers.items()},
        "speeds": speeds,
    }
    print(json.dumps(record))


def worker(name: str, options: argparse.Namespace, n_threads: int) -> Worker:
    return Worker(name, str(options.artifact if name.startswith("rankrt") else options.checkpoint), n_threads)


def _speed(
    workers: dict[str, Worker], workload: Workload, reranker: Reranker, options: argparse.Namespace
) -> dict[str, Any]:
    """Time one call a system in turn; return medians, ratios to rankrt round by round, and differences in logits."""
    answers = in_turn([workers[name] for name in SYSTEMS], workload, options.rounds)
    seconds = {name: [answer.seconds for answer in answers[name]] for name in SYSTEMS}
    logits = {name: np.array(answers[name][0].scores) for name in SYSTEMS}
    lengths = reranker.encode([(workload.query, passage) for passage in workload.passages]).lengths
    return {
        "workload": workload.name,
        "mean_tokens": round(float(lengths.mean()), 1),
        "max_tokens": int(lengths.max()),
        "n_rounds": options.rounds,
        "median_seconds": {name: round(median(seconds[name]), 3) for name in SYSTEMS},
        "times_rankrt": {name: round(ratio(seconds[name], seconds["rankrt"]), 3) for name in SYSTEMS},
        "max_difference_from_pytorch": {
            name: float(np.abs(logits[name] - logits["pytorch-sdpa"]).max()) for name in SYSTEMS
        },
    }


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring measurements, in which a drift of the machine cancels."""
    return median(value / other for value, other in zip(values, others, strict=True))


def in_turn(workers: Sequence[Worker], workload: Workload, n_rounds: int) -> dict[str, list[Answer]]:
    answers: dict[str, list[Answer]] = {worker.system: [] for worker in workers}
    for i in range(n_rounds + 1):
        for worker in workers:
            answer = worker.call(workload.query, workload.passages, workload.max_length)
            print(f"{workload.name:>20}  {worker.system:<22} {answer.seconds:8.3f} s", file=sys.stderr)
            if i:  # the first round warms up
                answers[worker.system].append(answer)
            time.sleep(_PAUSE_SECONDS)
    return answers


def options_of(description: str | None) -> argparse.Namespace:
    """Read what such a benchmark is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with docs_en.jsonl and candidates_en_*.jsonl"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
