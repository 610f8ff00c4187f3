"""A server's answers under overload: its capacity first, then a multiple of it.

    python -m benchmarks.studies.server_overload --artifact ./tiny --data ../shared/data -o record.json

For the capacity, clients send again as soon as they have an answer. In the overload, requests come at random at twice
that rate, with a deadline, and clients never slow down. Goodput is the documents a second that were answered in time,
until the last answer. Work for unanswered requests is wasted, and the server's own count of tokens shows how much.
Small requests of ten documents are a tenth of the work, and their waits are reported separately.
"""

import argparse
import asyncio
import collections
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.arrivals import capacity_per_s, poisson_arrivals
from benchmarks.harness.served import Server, new_query
from benchmarks.harness.workloads import Source, read
from rankrt.host.cpu import this_machine

_N_SMALL, _SMALL_SHARE = 10, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a request; `seconds` count from when it was due."""

    status: int
    n_documents: int
    n_tokens: int
    seconds: float
    done_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder above xquad/")
    parser.add_argument("--documents", type=int, default=300, help="of a large request")
    parser.add_argument("--load", type=float, default=2.0, help="requests that come, as a multiple of the capacity")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="of each request")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of the overload, and a third of it of the capacity"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="the file of the record")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with Server(str(options.artifact)) as server:
        requests = _Requests(server, options)
        rounds = [measure(server, requests, options) for _ in range(options.rounds)]
    record = {
        "benchmark": "server_overload",
        "machine": {"processor": this_machine().processor, "load_before": round(load_before, 2)},
        "model": options.artifact.name,
        "n_documents": options.documents,
        "load": options.load,
        "timeout_s": options.timeout_s,
        "goodput_share": round(float(np.median([found["goodput_share"] for found in rounds])), 4),
        "rounds": rounds,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")


class _Requests:
    """Different bodies of large and small requests, and a client that sends them."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        workload = Source(read(options.data)[1], options.artifact / "tokenizer.json").make("mixed", options.documents)
        self._port, self._query = server.port, workload.query
        self._large = [workload.passages[i % len(workload.passages)] for i in range(options.documents)]
        self._small = list(workload.passages[:_N_SMALL])
        self._timeout_ms = int(options.timeout_s * 1000)

    async def send(self, *, is_small: bool, timeout_ms: int | None = None) -> tuple[int, int, int]:
        """Return the status of a request, its documents and its tokens."""
        texts = self._small if is_small else self._large
        body = {"query": new_query(self._query), "texts": texts, "timeout_ms": timeout_ms or self._timeout_ms}
        content = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"POST /rerank HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(content) + content)
            head, _, _ = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        headers = dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:])
        return int(head.split()[1]), len(texts), int(headers.get("x-compute-tokens", 0))


def measure(server: Server, requests: _Requests, options: argparse.Namespace) -> dict[str, Any]:
    """Return a round: the capacity in large requests, and the results of a multiple of it."""

    async def large(i: int) -> bool:
        return (await requests.send(is_small=False, timeout_ms=60_000))[0] == 200

    capacity = asyncio.run(capacity_per_s(large, options.seconds / 3, 8)) * options.documents
    before = server.metrics()["rankrt_run_tokens_sum"]
    outcomes = asyncio.run(_overload(requests, capacity, options))
    computed = server.metrics()["rankrt_run_tokens_sum"] - before
    good = [outcome for outcome in outcomes if outcome.status == 200]
    seconds = max(outcome.done_s for outcome in good)
    goodput = sum(outcome.n_documents for outcome in good) / seconds
    found = {
        "capacity_documents_per_s": round(capacity, 1),
        "goodput_documents_per_s": round(goodput, 1),
        "goodput_share": round(goodput / capacity, 4),
        "thrown_away_share": round(1 - sum(outcome.n_tokens for outcome in good) / computed, 4),
        "statuses": dict(collections.Counter(str(outcome.status) for outcome in outcomes)),
        "refused_after_ms": _milliseconds([outcome for outcome in outcomes if outcome.status == 429]),
        "large_ms": _milliseconds([outcome for outcome in good if outcome.n_documents != _N_SMALL]),
        "small_ms": _milliseconds([outcome for outcome in good if outcome.n_documents == _N_SMALL]),
        "small_refused": sum(outcome.status != 200 and outcome.n_documents == _N_SMALL for outcome in outcomes),
    }
    print(json.dumps(found), flush=True)
    return found


async def _overload(requests: _Requests, capacity: float, options: argparse.Namespace) -> list[Outcome]:
    """Send large and small requests when they are due, and return the result of each."""
    documents = capacity * options.load
    due = [(at, False) for at in poisson_arrivals((1 - _SMALL_SHARE) * documents / options.documents, options.seconds)]
    due += [(at, True) for at in poisson_arrivals(_SMALL_SHARE * documents / _N_SMALL, options.seconds, seed=1)]
    started = time.perf_counter()

    async def one(at: float, is_small: bool) -> Outcome:
        status, n_documents, n_tokens = await requests.send(is_small=is_small)
        done = time.perf_counter() - started
        return Outcome(status=status, n_documents=n_documents, n_tokens=n_tokens, seconds=done - at, done_s=done)

    tasks = []
    for at, is_small in sorted(due):
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - started)))
        tasks.append(asyncio.create_task(one(at, is_small)))
    return list(await asyncio.gather(*tasks))


def _milliseconds(outcomes: list[Outcome]) -> dict[str, float] | None:
    if not outcomes:
        return None
    p50, p99 = np.percentile([1000 * outcome.seconds for outcome in outcomes], [50, 99])
    return {"n": len(outcomes), "p50": round(float(p50), 1), "p99": round(float(p99), 1)}


if __name__ == "__main__":
    main()
