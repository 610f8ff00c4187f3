"""What the server costs over the library, in turn on the same machine: throughput, an idle request, a mixed load.

    python -m benchmarks.server_overhead --artifact ./artifact --data ../shared/data/xquad

Saturation: tokens a second of `Reranker.rank`, called by one thread or by several, whichever is faster, against several
HTTP clients. Idle: the
median of one request of 10 passages at a time. Mixed: requests come at random at a share of what the machine can do,
95 % with 10 passages and 5 % with 500, and the small ones are timed. The clients run on the same cores as the server
and are paid for by it. The last line on standard output is the record as JSON.
"""

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.served import Client, Server, new_query
from benchmarks.workloads import Source, Workload, read
from rankrt import Reranker
from rankrt.machine import this_machine

_N_CALLERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder above xquad/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each side of a round at saturation")
    parser.add_argument("--passages", type=int, default=32, help="of a request at saturation")
    parser.add_argument("--n-small", type=int, default=300, help="small requests of the mixed load; 0 leaves it out")
    parser.add_argument("--load", type=float, default=0.5, help="of the mixed load, as a share of the throughput")
    parser.add_argument("--workers", default="auto")
    options = parser.parse_args()
    machine = this_machine()
    workload = Source(read(options.data)[1], options.artifact / "tokenizer.json").make("mixed", 240)
    with (
        Reranker.load(options.artifact) as reranker,
        Server(str(options.artifact), "--workers", options.workers, "--timeout-ms", "600000") as server,
    ):
        saturation = measure_saturation(reranker, server, workload, options)
        print(json.dumps(saturation), flush=True)
        idle = measure_idle(reranker, server, workload, 10 * options.rounds)
        print(json.dumps(idle), flush=True)
        speed = saturation["server_tokens_per_second"]
        loaded = measure_mixed(server, workload, options, speed) if options.n_small else {}
        variant = reranker.variant.name
    record = {
        "benchmark": "server_overhead",
        "model": options.artifact.name,
        "variant": variant,
        "machine": {"processor": machine.processor, "n_threads": machine.cores.n},
        "workers": options.workers,
        "saturation": saturation,
        "idle": idle,
        "mixed": loaded,
    }
    print(json.dumps(record))


def measure_saturation(
    reranker: Reranker, server: Server, workload: Workload, options: argparse.Namespace
) -> dict[str, float]:
    """Return tokens a second of both, and the median of the rounds' ratios."""
    passages = workload.passages[: options.passages]
    clients = [Client(server.port) for _ in range(_N_CALLERS)]

    def in_process(caller: int) -> int:
        return reranker.rank(new_query(workload.query), passages).n_tokens

    def served(caller: int) -> int:
        return clients[caller].rank(workload.query, passages).n_tokens

    speeds: dict[str, list[float]] = {"in_process": [], "server": []}
    for _ in range(options.rounds):
        alone, together = (_tokens_per_second(in_process, n, options.seconds) for n in (1, _N_CALLERS))
        speeds["in_process"].append(max(alone, together))
        speeds["server"].append(_tokens_per_second(served, _N_CALLERS, options.seconds))
    ratios = np.array(speeds["server"]) / np.array(speeds["in_process"])
    return {
        "n_passages": len(passages),
        "n_callers": _N_CALLERS,
        "in_process_tokens_per_second": round(float(np.median(speeds["in_process"])), 1),
        "server_tokens_per_second": round(float(np.median(speeds["server"])), 1),
        "ratio": round(float(np.median(ratios)), 4),
        "ratio_min": round(float(ratios.min()), 4),
        "ratio_max": round(float(ratios.max()), 4),
    }


def measure_idle(reranker: Reranker, server: Server, workload: Workload, n_rounds: int) -> dict[str, float]:
    """Return the median seconds of a call and of a request, in turn, and of their difference."""
    client, passages = Client(server.port), workload.passages[:10]
    rows = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        reranker.rank(new_query(workload.query), passages)
        rows.append((time.perf_counter() - started, client.rank(workload.query, passages).seconds))
    calls, requests = np.array(rows).T
    return {
        "n_passages": len(passages),
        "n_rounds": n_rounds,
        "in_process_ms": round(1e3 * float(np.median(calls)), 3),
        "server_ms": round(1e3 * float(np.median(requests)), 3),
        "difference_ms": round(1e3 * float(np.median(requests - calls)), 3),
    }


def measure_mixed(
    server: Server, workload: Workload, options: argparse.Namespace, tokens_per_second: float
) -> dict[str, float]:
    """Return how long small requests take beside large ones, and alone."""
    small, large = list(workload.passages[:10]), [workload.passages[i % 240] for i in range(500)]
    client = Client(server.port)
    alone = [client.rank(workload.query, small) for _ in range(20)]
    one_row = [client.rank(workload.query, [max(small, key=len)]).seconds for _ in range(20)]
    mean_tokens = alone[0].n_tokens * (0.95 + 0.05 * 50)
    gap = mean_tokens / (tokens_per_second * options.load)
    print(f"a request every {gap:.3f} s on average", flush=True)
    seconds, statuses = _open_loop(server, workload.query, small, large, options.n_small, gap)
    idle, row = float(np.median([reply.seconds for reply in alone])), float(np.median(one_row))
    p99 = float(np.percentile(seconds, 99))
    return {
        "load": options.load,
        "n_small": len(seconds),
        "idle_ms": round(1e3 * idle, 2),
        "one_row_ms": round(1e3 * row, 2),
        "p50_ms": round(1e3 * float(np.median(seconds)), 2),
        "p99_ms": round(1e3 * p99, 2),
        "p99_limit_ms": round(1e3 * (3 * idle + row), 2),
        "p99_over_idle": round(p99 / idle, 2),
        "refused": sum(status != 200 for status in statuses),
    }


def _open_loop(
    server: Server, query: str, small: Sequence[str], large: Sequence[str], n_small: int, gap: float
) -> tuple[list[float], list[int]]:
    """Send requests when they are due, whether or not others were answered; return the seconds of the small ones."""
    chance, seconds, statuses, local = random.Random(0), [], [], threading.local()

    def ask(passages: Sequence[str], due: float) -> None:
        if not hasattr(local, "client"):
            local.client = Client(server.port)
        reply = local.client.rank(query, passages)
        statuses.append(reply.status)
        if passages is small:
            seconds.append(time.perf_counter() - due)

    with ThreadPoolExecutor(64) as pool:
        due = time.perf_counter()
        while len(seconds) < n_small:
            due += chance.expovariate(1 / gap)
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(ask, large if chance.random() < 0.05 else small, due)
    return seconds, statuses


def _tokens_per_second(call: Callable[[int], int], n_callers: int, seconds: float) -> float:
    """Call from several threads for so long; count what was finished, up to the last one."""
    started, counts = time.perf_counter(), [0] * n_callers

    def caller(i: int) -> None:
        while time.perf_counter() - started < seconds:
            counts[i] += call(i)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(n_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
