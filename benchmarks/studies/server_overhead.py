"""The cost of the server over the library, in turn on the same machine: throughput, an idle request, a mixed load.

    python -m benchmarks.studies.server_overhead --artifact ./tiny ./base --data ../shared/data -o record.json

Saturation is tokens a second for the same number of requests on each side. One side calls `Reranker.rank` from one
thread, or from as many threads as there are HTTP clients, whichever is faster in the median round. The other side is
these clients. Each makes several requests in turn, so that the end of a round, when some have none left, is a small
part of it. Every query is a new one. Both sides compute a decoder's query once, for all its passages. Idle is
the median of one request of 10 passages at a time. In the mixed load, requests come at random at a share of the
machine's throughput: 95 % have 10 passages and 5 % have 500. The small ones are timed from when they were due.

The clients run on the server's cores, at its cost. So processor time is measured, too: of the library, of the server
with its workers, and of the clients. On a busy machine it shows more than time on the clock.
"""

import argparse
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.served import Client, Server, new_query
from benchmarks.harness.workloads import Source, Workload, read
from rankrt import Reranker
from rankrt.host.cpu import this_machine

_PARTS = ("saturation", "idle", "mixed")
_N_CALLERS, _LEAST_EACH = 4, 4
_N_SMALL, _N_LARGE, _SHARE_LARGE = 10, 500, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A number of answered requests; cpu_s is the processor time of each part."""

    n_requests: int
    n_tokens: int
    seconds: float
    cpu_s: Mapping[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds

    def cpu_us_per_token(self, *names: str) -> float:
        return 1e6 * sum(self.cpu_s[name] for name in names) / self.n_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder above xquad/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each side of a round at saturation, about")
    parser.add_argument("--passages", type=int, default=32, help="of a request at saturation")
    parser.add_argument("--mixed-seconds", type=float, default=60, help="of the mixed load")
    parser.add_argument("--load", type=float, default=0.5, help="of the mixed load, as a share of the throughput")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="a large model takes long for all")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="the file of the record")
    options = parser.parse_args()
    if "mixed" in options.parts and "saturation" not in options.parts:
        parser.error("--parts mixed needs saturation, whose throughput it takes a share of")
    machine, load = this_machine(), os.getloadavg()[0]
    record = {
        "benchmark": "server_overhead",
        "machine": {"processor": machine.processor, "n_threads": machine.cores.n, "load_before": round(load, 2)},
        "models": [measure(artifact, options) for artifact in options.artifact],
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")


def measure(artifact: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of one model; the mixed load follows from the throughput at saturation."""
    workload = Source(read(options.data)[1], artifact / "tokenizer.json").make("mixed", 240)
    with (
        Reranker.load(artifact) as reranker,
        Server(str(artifact), "--workers", options.workers, "--timeout-ms", "600000") as server,
    ):
        found: dict[str, dict[str, float]] = {}
        for part in options.parts:
            if part == "saturation":
                found[part] = measure_saturation(reranker, server, workload, options)
            elif part == "idle":
                found[part] = measure_idle(reranker, server, workload, 10 * options.rounds)
            else:
                found[part] = measure_mixed(server, workload, options, found["saturation"]["server_tokens_per_second"])
            print(json.dumps(found[part]), flush=True)
    return {"model": artifact.name, "variant": reranker.variant.name, "workers": options.workers, **found}


def measure_saturation(
    reranker: Reranker, server: Server, workload: Workload, options: argparse.Namespace
) -> dict[str, float]:
    """Return tokens a second and processor time of both, medians of the rounds and of their ratios."""
    passages = workload.passages[: options.passages]
    clients = [Client(server.port) for _ in range(_N_CALLERS)]

    def in_process(caller: int) -> int:
        ranking = reranker.rank(new_query(workload.query), passages)
        return ranking.n_tokens + ranking.n_saved_tokens  # as the server counts

    def served(caller: int) -> int:
        return clients[caller].rank(workload.query, passages).n_tokens

    warm = [_work(call, _N_CALLERS, _N_CALLERS, server) for call in (in_process, served)]
    each = -(-options.seconds * warm[0].n_requests // (warm[0].seconds * _N_CALLERS))
    n_requests = int(max(_LEAST_EACH, each)) * _N_CALLERS
    sides = {"alone": (in_process, 1), "together": (in_process, _N_CALLERS), "server": (served, _N_CALLERS)}
    rounds = [
        {name: _work(call, n_callers, n_requests, server) for name, (call, n_callers) in sides.items()}
        for _ in range(options.rounds)
    ]
    way = faster_way(rounds)
    ratios = [found["server"].tokens_per_second / found[way].tokens_per_second for found in rounds]
    return {
        "n_passages": len(passages),
        "n_callers": _N_CALLERS,
        "in_process_callers": 1 if way == "alone" else _N_CALLERS,
        "n_requests": n_requests,
        "in_process_tokens_per_second": _median(found[way].tokens_per_second for found in rounds),
        "server_tokens_per_second": _median(found["server"].tokens_per_second for found in rounds),
        "ratio": _median(ratios, 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "in_process_cpu_us_per_token": _median(found[way].cpu_us_per_token("here") for found in rounds),
        "server_cpu_us_per_token": _median(found["server"].cpu_us_per_token("server") for found in rounds),
        "workers_cpu_us_per_token": _median(found["server"].cpu_us_per_token("workers") for found in rounds),
        "clients_cpu_us_per_token": _median(found["server"].cpu_us_per_token("here") for found in rounds),
    }


def measure_idle(reranker: Reranker, server: Server, workload: Workload, n_rounds: int) -> dict[str, float]:
    """Return the median seconds of a call, of a request in turn with it, and of their difference."""
    client, passages = Client(server.port), workload.passages[:_N_SMALL]
    rows, clients_s = [], 0.0
    for _ in range(n_rounds):
        started = time.perf_counter()
        reranker.rank(new_query(workload.query), passages)
        seconds, cpu_s = time.perf_counter() - started, time.thread_time()
        rows.append((seconds, client.rank(workload.query, passages).seconds))
        clients_s += time.thread_time() - cpu_s
    calls, requests = np.array(rows).T
    return {
        "n_passages": len(passages),
        "n_rounds": n_rounds,
        "in_process_ms": _median(1e3 * calls),
        "server_ms": _median(1e3 * requests),
        "difference_ms": _median(1e3 * (requests - calls)),
        "client_cpu_ms": round(1e3 * clients_s / n_rounds, 3),
    }


def measure_mixed(
    server: Server, workload: Workload, options: argparse.Namespace, tokens_per_second: float
) -> dict[str, float]:
    """Return the times of small requests beside large ones, and alone."""
    small = list(workload.passages[:_N_SMALL])
    large = [workload.passages[i % len(workload.passages)] for i in range(_N_LARGE)]
    client = Client(server.port)
    alone = [client.rank(workload.query, small) for _ in range(20)]
    one_row = [client.rank(workload.query, [max(small, key=len)]).seconds for _ in range(20)]
    of_large = client.rank(workload.query, large).n_tokens
    mean_tokens = alone[0].n_tokens * (1 - _SHARE_LARGE) + of_large * _SHARE_LARGE
    gap = mean_tokens / (tokens_per_second * options.load)
    found = _open_loop(server, workload.query, small, large, _arrivals(gap, options.mixed_seconds))
    idle, row = _median(1e3 * reply.seconds for reply in alone), _median(1e3 * np.array(one_row))
    waits = 1e3 * np.array([wait for wait, _ in found.small])
    return {
        "load": options.load,
        "seconds_between": round(gap, 4),
        "n_small": len(found.small),
        "n_large": found.n_large,
        "idle_ms": idle,
        "one_row_ms": row,
        "p50_ms": _median(waits),
        "p99_ms": round(float(np.percentile(waits, 99)), 3),
        "p99_limit_ms": round(3 * idle + row, 3),
        "sent_late_p99_ms": round(1e3 * float(np.percentile([late for _, late in found.small], 99)), 3),
        "clients_cpu_share": round(found.clients_s / options.mixed_seconds, 4),
        "refused": found.n_refused,
    }


@dataclass(slots=True, kw_only=True)
class Arrived:
    """The results of requests: for small ones the seconds since they were due, and the part before the sending.

    clients_s is processor time.
    """

    small: list[tuple[float, float]]
    n_large: int = 0
    n_refused: int = 0
    clients_s: float = 0.0


def _arrivals(gap: float, seconds: float) -> list[tuple[float, bool]]:
    """Return the times when requests are due, and their sizes. They are the same in every run."""
    chance, due = random.Random(0), 0.0
    arrivals: list[tuple[float, bool]] = []
    while (due := due + chance.expovariate(1 / gap)) < seconds or not arrivals:
        arrivals.append((due, chance.random() < _SHARE_LARGE))
    return arrivals


def _open_loop(
    server: Server, query: str, small: Sequence[str], large: Sequence[str], arrivals: Sequence[tuple[float, bool]]
) -> Arrived:
    """Send requests when they are due, even while others are unanswered."""
    found, local, cpu_s, started = Arrived(small=[]), threading.local(), time.process_time(), time.perf_counter()

    def ask(is_large: bool, due: float) -> None:
        if not hasattr(local, "client"):
            local.client = Client(server.port)
        late = time.perf_counter() - due
        reply = local.client.rank(query, large if is_large else small)
        found.n_refused += reply.status != 200
        found.n_large += is_large
        if not is_large:
            found.small.append((time.perf_counter() - due, late))

    asked: list[Future[None]] = []
    with ThreadPoolExecutor(64) as pool:
        for due, is_large in arrivals:
            time.sleep(max(0.0, started + due - time.perf_counter()))
            asked.append(pool.submit(ask, is_large, started + due))
    for future in asked:
        future.result()
    found.clients_s = time.process_time() - cpu_s
    return found


def _work(call: Callable[[int], int], n_callers: int, n_requests: int, server: Server) -> Work:
    """Make so many requests from several threads. Each thread sends the next one after an answer."""
    numbers, counts, before = iter(range(n_requests)), [0] * n_callers, _cpu_s(server)
    started = time.perf_counter()

    def caller(i: int) -> None:
        for _ in numbers:
            counts[i] += call(i)

    with ThreadPoolExecutor(n_callers) as pool:
        list(pool.map(caller, range(n_callers)))
    seconds, after = time.perf_counter() - started, _cpu_s(server)
    return Work(
        n_requests=n_requests,
        n_tokens=sum(counts),
        seconds=seconds,
        cpu_s={name: after[name] - before[name] for name in after},
    )


def _cpu_s(server: Server) -> dict[str, float]:
    """Return the processor time until now of this process, of the server and of its workers."""
    return {"here": time.process_time(), **server.cpu_s()}


def faster_way(rounds: Sequence[Mapping[str, Work]]) -> str:
    """Return how the library is faster in the median round. The better of two in each round would be luck."""
    return max(("alone", "together"), key=lambda name: _median(found[name].tokens_per_second for found in rounds))


def _median(values: Any, digits: int = 3) -> float:
    return round(float(np.median(list(values))), digits)


if __name__ == "__main__":
    main()
