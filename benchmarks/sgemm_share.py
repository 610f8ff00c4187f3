"""How near one row comes to the machine's own rate at matrix products, the best of three libraries in the same run.

    python -m benchmarks.sgemm_share --checkpoint ./checkpoint --artifact ./artifact --data ../shared/data/xquad

There are two rates to compare with: products repeated alone, whose weights the caches hold, and the products of a whole
model one after the other, whose weights come from memory as the model's own do.
The last line on standard output is the record as JSON.
"""

import argparse
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cpu_speed import in_turn, options_of, ratio, worker
from benchmarks.worker import Worker
from benchmarks.workloads import Workload, exact
from rankrt.machine import this_machine

_CEILINGS = {"sgemm": "of_sgemm_alone", "sgemm-from-memory": "of_sgemm_from_memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of config.json that say how many operations a row takes."""

    n_layers: int
    hidden: int
    intermediate: int

    def operations(self, n_tokens: int) -> float:
        """Return the floating-point operations that the written graph does for a row: its last layer for one token."""
        return (self.n_layers - 1) * self._layer(n_tokens, n_tokens) + self._layer(1, n_tokens) + 2 * self.hidden**2

    def _layer(self, n_queries: int, n_tokens: int) -> float:
        keys_and_values = 4 * n_tokens * self.hidden**2
        query_and_output = 4 * n_queries * self.hidden**2
        attention = 4 * n_queries * n_tokens * self.hidden
        return keys_and_values + query_and_output + attention + 4 * n_queries * self.hidden * self.intermediate


def main() -> None:
    options = options_of(__doc__)
    machine = this_machine()
    n_threads = options.threads or machine.cores.n
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(name, options, n_threads)) for name in ("rankrt", *_CEILINGS)]
        shares = [_share(workers, exact(options.data, "en", n_tokens), options) for n_tokens in (128, 512)]
    record = {
        "benchmark": "sgemm_share",
        "model": options.checkpoint.name,
        "shape": asdict(_shape(options.checkpoint)),
        "machine": {"processor": machine.processor, "instructions": machine.instructions, "n_threads": n_threads},
        "versions": {worker.system: worker.versions for worker in workers},
        "n_rounds": options.rounds,
        "shares": shares,
    }
    print(json.dumps(record))


def _share(workers: list[Worker], workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Compare rankrt's rate for one row with the best that a library reaches for products of that many rows."""
    answers = in_turn(workers, workload, options.rounds)
    n_operations = _shape(options.checkpoint).operations(workload.max_length)
    rates = [n_operations / answer.seconds / 1e9 for answer in answers["rankrt"]]
    record: dict[str, Any] = {"n_tokens": workload.max_length, "rankrt_gflops": round(median(rates), 1)}
    for system, share in _CEILINGS.items():
        ceilings = [max(answer.scores) for answer in answers[system]]
        record[f"{system}_gflops"] = round(median(ceilings), 1)
        record[share] = round(ratio(rates, ceilings), 3)
    return record


def _shape(checkpoint: Path) -> Shape:
    config = json.loads((checkpoint / "config.json").read_text())
    return Shape(
        n_layers=config["num_hidden_layers"], hidden=config["hidden_size"], intermediate=config["intermediate_size"]
    )


if __name__ == "__main__":
    main()
