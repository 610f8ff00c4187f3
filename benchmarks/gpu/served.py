"""A server on the GPU: its capacity with clients that wait, and its latency at shares of that capacity."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.gpu.lines import Line
from benchmarks.gpu.subject import Subject
from benchmarks.gpu.texts import pairs_of
from benchmarks.harness.arrivals import capacity_per_s, offer, poisson_arrivals
from benchmarks.harness.served import Client, Server

_N_CLIENTS, _N_PASSAGES = 32, 20
_SHARES = (0.5, 0.8)
_SECONDS = 5.0


def served(subject: Subject) -> Iterator[Line]:
    """Yield the server's capacity, then the latency at shares of it. Requests come at random times."""
    seconds = _SECONDS * min(1.0, subject.size.seconds)
    passages = [passage for _, passage in pairs_of(_N_PASSAGES)]
    with (
        Server(str(subject.artifact.folder), "--device", "cuda", "--precision", "fp16") as server,
        ThreadPoolExecutor(_N_CLIENTS) as pool,
    ):
        own = threading.local()

        def ask() -> bool:
            if not hasattr(own, "client"):
                own.client = Client(server.port)
            return bool(own.client.rank("which of these?", passages).status == 200)

        async def send(number: int) -> bool:
            return await asyncio.get_running_loop().run_in_executor(pool, ask)

        asyncio.run(capacity_per_s(send, seconds / 4, _N_CLIENTS))  # warms the server up
        capacity = asyncio.run(capacity_per_s(send, seconds, _N_CLIENTS))
        figures = {"requests_per_s": capacity, "pairs_per_s": capacity * _N_PASSAGES}
        yield Line(name=f"capacity, {_N_CLIENTS} clients, {_N_PASSAGES} passages each", figures=figures)
        for share in _SHARES:
            replies = asyncio.run(offer(send, poisson_arrivals(share * capacity, seconds)))
            waits = [1e3 * reply.latency_s for reply in replies if reply.is_good]
            figures = {f"p{q}_ms": float(np.percentile(waits, q)) for q in (50, 95)} if waits else {}
            figures |= {"requests": len(replies), "refused": len(replies) - len(waits)}
            yield Line(name=f"{share:.0%} of capacity", figures=figures)
