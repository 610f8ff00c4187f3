"""The wait of a server's users: latency over offered load, below its capacity and above.

Speaks TEI's dialect, POST /rerank {"query", "texts"}, or Jina's, with "documents". The load is a share of the server's
capacity, which clients that wait for their answers measure just before. The client shares the machine with the server.
"""

import asyncio
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.harness.arrivals import Send, capacity_per_s, offer, poisson_arrivals
from benchmarks.harness.conversions import compile_program
from benchmarks.harness.environments import cache_folder, pinned, python_of
from benchmarks.harness.lab import Case, Lab, Measured
from benchmarks.harness.served import free_port
from benchmarks.harness.worker import ROOT, Budget, SystemFailed, environment, last_words
from benchmarks.harness.workloads import Workload
from benchmarks.records.record import System
from benchmarks.records.statistics import percentiles_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How a system is served over HTTP.

    command      with the fields {python} of the environment, {program}, {model}, {port} and {threads}; or the address
                 of a running server
    environment  a file in locks/; "" is the harness's own
    program      the program to compile for it, a name in PROGRAMS; "" for none
    parts        the packages whose versions the record names, from the environment's lock
    field        the request's field for passages: "texts" in TEI's dialect, "documents" in Jina's
    """

    command: str
    environment: str = ""
    program: str = ""
    parts: tuple[str, ...] = ()
    field: str = "texts"

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is an address."""
        return self.command.startswith(("http://", "https://"))


_RANKRT = "{python} -m rankrt.cli.main serve {model} --port {port} --threads {threads} --precision "
_RANKRT_PARTS = ("onnxruntime", "starlette", "uvicorn")
SERVERS: Mapping[str, Server] = {
    "rankrt-fp32": Server(command=f"{_RANKRT} fp32", environment="rankrt-server", parts=_RANKRT_PARTS),
    "rankrt-int8": Server(command=f"{_RANKRT} int8", environment="rankrt-server", parts=_RANKRT_PARTS),
    # Its warm-up scores 32 long rows: over five minutes for a large model on two cores. Our own warm-up follows.
    "infinity": Server(
        command="{python} -c 'from infinity_emb.cli import cli; cli()' v2 --model-id {model} --port {port}"
        " --engine torch --device cpu --no-bettertransformer --no-model-warmup",
        environment="infinity",
        parts=("infinity_emb", "torch", "transformers"),
        field="documents",
    ),
    "llama.cpp-f16": Server(
        command="{program} --reranking --model {model}/model-f16.gguf --port {port} --threads {threads}",
        environment="llama.cpp",
        program="llama-server",
        parts=("llama_cpp_python",),
        field="documents",
    ),
}
_SHARES = (0.2, 0.4, 0.6, 0.8, 0.95, 1.1)
_N_PASSAGES = 8
_N_CLIENTS = 4
_ANSWER_S = 60.0


def cases(lab: Lab, system: str) -> list[Case]:
    """Return the shares of a server's capacity to offer; none for a system without a server."""
    given = lab.settings.servers.get(system)
    server = Server(command=given) if given else SERVERS.get(system)
    if server is None:
        return []
    loaded = _Loaded(lab, system, server)
    return [Case(name=f"{share:.0%} of capacity", measure=partial(loaded.measure, share)) for share in _SHARES]


class _Loaded:
    """A server that is started once, at the first case. Its capacity is measured, then every share of it is offered."""

    def __init__(self, lab: Lab, system: str, server: Server) -> None:
        self._lab = lab
        self._system = system
        self._server = server
        self._found: dict[float, Measured] = {}
        self._failure: str | None = None

    def measure(self, share: float) -> Measured:
        """Return the result of a share. Raises SystemFailed if the server does not start or has no good answer."""
        if not self._found and self._failure is None:
            self._lab.close()
            try:
                with serving(self._lab, self._system, self._server) as served:
                    asyncio.run(self._offer(served, self._lab.source.make("mixed", _N_PASSAGES)))
            except SystemFailed as failure:
                self._failure = str(failure)
        if share not in self._found:
            raise SystemFailed(self._failure or "it was not offered")
        return self._found[share]

    async def _offer(self, served: "_Served", workload: Workload) -> None:
        """Offer the shares from the lowest on, and keep their results if a later one fails."""
        settings = self._lab.settings
        async with requests(served.url, self._server.field, workload) as send:
            await _first_answer(served, send, settings.budget.load_s)
            capacity = await capacity_per_s(send, settings.load_seconds, _N_CLIENTS)
            if not capacity:
                raise SystemFailed(f"none of its answers to {_N_CLIENTS} clients was good")
            for share in _SHARES:
                self._found[share] = await offer_rate(send, share * capacity, settings.load_seconds, capacity)


async def offer_rate(send: Send, rate_per_s: float, duration_s: float, capacity: float) -> Measured:
    """Offer a rate for a time and report the answers."""
    replies = await offer(send, poisson_arrivals(rate_per_s, duration_s))
    good = [reply for reply in replies if reply.is_good]
    if not good:
        raise SystemFailed(f"none of {len(replies)} requests was answered")
    seconds = tuple(reply.latency_s for reply in good)
    return Measured(
        size={"offered_per_s": rate_per_s, "capacity_per_s": capacity, "n_requests": len(replies)},
        metrics=percentiles_ms(seconds)
        | {
            "answered_per_s": len(good) / max(reply.done_s for reply in good),
            "failed": float(len(replies) - len(good)),
            "latest_sending_ms": 1e3 * float(np.max([reply.sent_s - reply.due_s for reply in replies])),
        },
        seconds=seconds,
    )


@asynccontextmanager
async def requests(url: str, field: str, workload: Workload) -> AsyncIterator[Send]:
    """Yield a function that sends requests with different queries, because a server may remember scores."""
    numbers = itertools.count()
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(i: int) -> bool:
            request = {"query": f"{workload.query} {next(numbers)}", field: list(workload.passages)}
            try:
                async with session.post(f"{url}/rerank", json=request) as response:
                    await response.read()
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        yield send


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """The address of a server; for one that was started here, its process and its output."""

    url: str
    process: "subprocess.Popen[bytes] | None" = None
    log: Path | None = None

    def check(self) -> None:
        """Raise SystemFailed if it has ended."""
        if self.process is not None and self.log is not None and self.process.poll() is not None:
            raise SystemFailed(f"its server ended: {last_words(self.log)}")


async def _first_answer(served: _Served, send: Send, limit_s: float) -> None:
    """Send requests until one succeeds. Raises SystemFailed if the server ends, or after the limit."""
    started = time.perf_counter()
    while not await send(0):
        served.check()
        if time.perf_counter() - started > limit_s:
            raise SystemFailed(f"its server did not answer POST /rerank within {limit_s:g} s")
        await asyncio.sleep(0.1)


@contextmanager
def serving(lab: Lab, system: str, server: Server) -> Iterator[_Served]:
    """Start a server and stop it afterwards. Raises SystemFailed if the program does not exist."""
    if server.is_elsewhere:
        yield _Served(url=server.command.rstrip("/"))
        return
    port, threads = free_port(), lab.settings.budget.n_threads
    tools = tools_of(server, lab.settings.budget)
    if server.parts:
        lab.systems.setdefault(system, System(versions=pinned(server.environment, server.parts)))
    command = shlex.split(server.command.format(**tools, model=lab.path_for(system), port=port, threads=threads))
    log = cache_folder() / "logs" / f"{system.replace(':', '.')}-server.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _start(command, lab.settings.budget, log)
    try:
        yield _Served(url=f"http://127.0.0.1:{port}", process=process, log=log)
    finally:
        _stop(process)


def tools_of(server: Server, budget: Budget) -> dict[str, Path]:
    """Return a server's interpreter and its program; build them the first time. Raises SystemFailed."""
    tools = {"python": python_of(server.environment) if server.environment else Path(sys.executable)}
    return tools | ({"program": compile_program(server.program, budget) / server.program} if server.program else {})


def _start(command: Sequence[str], budget: Budget, log: Path) -> "subprocess.Popen[bytes]":
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, budget.cpus)  # a process has its parent's CPUs
    with log.open("wb") as words:
        try:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment(budget.n_threads), stdout=words, stderr=words, start_new_session=True
            )
        except OSError as error:
            raise SystemFailed(f"{command[0]}: {error.strerror}") from None
        finally:
            os.sched_setaffinity(0, allowed)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a server with all its processes, if need be by force."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
