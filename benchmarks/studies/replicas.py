"""Several servers with HAProxy in front: requests go by the least load, or by their query.

    python -m benchmarks.studies.replicas --artifact ./tiny -o benchmarks/results/replicas.json

Some questions are asked again and again: their popularity follows Zipf's law. Each has its own passages, so a question
that comes again repeats rows of an earlier request, as in a search box. The servers keep scores (--cache-mb), each less
than all questions need. A front that spreads requests by load fills every cache with the same popular questions. One
that hashes the query gives each server questions of its own.

A number of requests fills the caches, and as many are measured. Clients send the next one as soon as they have an
answer. Then requests come at random, at a rate that is the same in every case, and latencies count from when a request
was due. All servers, the front and the clients share this machine. So more servers add memory for scores here, and no
processors. The servers' processor time for a request hardly depends on what else the machine does. The other times do.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.harness.arrivals import Send, offer, poisson_arrivals
from benchmarks.harness.front import Front
from benchmarks.harness.served import Server
from rankrt.arrays import Float64Array
from rankrt.host.cpu import this_machine

_BACKENDS = ("by_load", "by_query")
_N_CLIENTS = 8
_WORDS = ["one", "two", "three", "four", "zero", "panda", "bear", "China", "bamboo", "capital", "France", "river"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--servers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=10, help="of a question")
    parser.add_argument("--cache-mb", type=int, default=1, help="of a server; 1 MB keeps about 4,000 scores")
    parser.add_argument("--requests", type=int, default=1500, help="to fill the caches, and as many to measure")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, for the latencies")
    parser.add_argument("--seconds", type=float, default=8.0, help="of that rate")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases in turn; the medians are recorded")
    parser.add_argument("-o", "--output", type=Path, help="the file of the record")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    bodies = make_bodies(options.questions, options.documents)
    kinds = [(n, backend) for n in options.servers for backend in _BACKENDS]
    rounds = [[measure(n, backend, bodies, options) for n, backend in kinds] for _ in range(options.rounds)]
    cases = [
        {"servers": n, "backend": backend, **_medians(found)}
        for (n, backend), found in zip(kinds, zip(*rounds, strict=True), strict=True)
    ]
    record = {
        "benchmark": "replicas",
        "machine": {
            "processor": this_machine().processor,
            "n_processors": os.cpu_count(),
            "load_before": round(load_before, 2),
        },
        "model": options.artifact.name,
        "n_questions": options.questions,
        "n_documents": options.documents,
        "cache_mb": options.cache_mb,
        "n_rounds": options.rounds,
        "n_requests": options.requests,
        "offered_per_s": options.rate,
        "cases": cases,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")


def make_bodies(n_questions: int, n_documents: int) -> list[bytes]:
    """Return a request for each question: a query of its own, and passages of its own."""
    random = np.random.default_rng(0)

    def text(n_words: int) -> str:
        return " ".join(random.choice(_WORDS, n_words))

    asked = [{"query": f"{text(4)} {i}", "texts": [text(30) for _ in range(n_documents)]} for i in range(n_questions)]
    return [json.dumps(body).encode() for body in asked]


def measure(n: int, backend: str, bodies: Sequence[bytes], options: argparse.Namespace) -> dict[str, float]:
    """Return what the caches had, the cost of a request and the latencies. Raises SystemExit if a request is lost."""
    with ExitStack() as stack:
        port, servers = _started(stack, n, backend, options)
        send = _asker(port, bodies)
        asyncio.run(_send_all(send, options.requests))
        before, cpu_before, started = _hits_and_misses(servers), _cpu_s(servers), time.perf_counter()
        asyncio.run(_send_all(send, options.requests))
        seconds, cpu_s = time.perf_counter() - started, _cpu_s(servers) - cpu_before
        hits, misses = _hits_and_misses(servers) - before
        replies = asyncio.run(offer(send, poisson_arrivals(options.rate, options.seconds)))
    if n_lost := sum(not reply.is_good for reply in replies):
        raise SystemExit(f"{n_lost} of {len(replies)} requests were not answered")
    p50, p99 = np.percentile([1000 * reply.latency_s for reply in replies], [50, 99])
    found = {
        "cache_hit_share": round(float(hits / (hits + misses)), 4),
        "server_cpu_ms": round(1000 * cpu_s / options.requests, 2),
        "goodput_per_s": round(options.requests / seconds, 1),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
    }
    print(n, backend, json.dumps(found), file=sys.stderr, flush=True)
    return found


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.median([found[name] for found in rounds])), 4) for name in rounds[0]}


async def _send_all(send: Send, n: int) -> None:
    """Send so many requests from several clients. Raises SystemExit if one is not answered."""
    numbers = iter(range(n))

    async def client() -> None:
        for i in numbers:
            if not await send(i):
                raise SystemExit(f"request {i} was not answered")

    await asyncio.gather(*(client() for _ in range(_N_CLIENTS)))


def _cpu_s(servers: Sequence[Server]) -> float:
    return sum(server.cpu_s()["server"] for server in servers)


def _started(stack: ExitStack, n: int, backend: str, options: argparse.Namespace) -> tuple[int, list[Server]]:
    """Start servers of one thread each, and the front. Return its port, and the servers."""
    arguments = ("--workers", "0", "--threads", "1", "--cache-mb", str(options.cache_mb))
    servers = [stack.enter_context(Server(str(options.artifact), *arguments)) for _ in range(n)]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    front = stack.enter_context(Front(folder, [server.port for server in servers], backend))
    return front.port, servers


def _hits_and_misses(servers: Sequence[Server]) -> Float64Array:
    """Return the rows that the caches of all servers had until now, and those that they had not."""
    names = ("rankrt_cache_hits_total", "rankrt_cache_misses_total")
    each = np.array([[server.metrics()[name] for name in names] for server in servers], np.float64)
    return np.asarray(each.sum(axis=0), np.float64)


def _asker(port: int, bodies: Sequence[bytes]) -> Send:
    """Return a function that asks one of the questions, the popular ones more often, and tells if it was answered."""
    random = np.random.default_rng(1)
    weights = 1 / np.arange(1, len(bodies) + 1)
    chosen = random.choice(len(bodies), size=100_000, p=weights / weights.sum())
    numbers = iter(chosen)

    async def send(_: int) -> bool:
        body = bodies[next(numbers)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"POST /rerank HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.read()
        finally:
            writer.close()
        return answer.startswith(b"HTTP/1.1 200")

    return send


if __name__ == "__main__":
    main()
