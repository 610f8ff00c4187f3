"""A server under twice the load it can take, beside clients that misbehave, while its workers are killed.

    python -m benchmarks.server_soak --artifact ./artifact --seconds 1800 -o benchmarks/results/server_soak.json

Every request has to get an answer or a clear refusal, every answer has to be right to the last bit, nothing may hang
and memory has to stay flat. All of it is on loopback and bounded in count and time. The record is printed, and written
with -o; the exit status is 1 if something was not as it should be.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.served import Server
from rankrt import Reranker
from rankrt.server.metrics import resident_bytes

WORDS = ["one", "two", "three", "four", "zero", "panda", "bear", "China", "bamboo", "capital", "France", "river"]
_N_CLIENTS = 24
_N_FAULTS = 4
_KILL_EVERY_S = 20.0
_MAX_BODY_MB = 1
_N_MEMORY_POINTS = 30
# What a well-formed request may be told under overload and while a worker is started again.
_REFUSALS = {429, 503, 504}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request with the scores it has to get."""

    query: str
    texts: Sequence[str]
    scores: Sequence[float]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was seen, by all threads."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[tuple[float, int, int]] = field(default_factory=list)
    n_killed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, status: object) -> None:
        with self.lock:
            self.statuses[str(status)] += 1

    def fault(self, name: str, outcome: object) -> None:
        with self.lock:
            self.faults[f"{name}: {outcome}"] += 1

    def blame(self, what: str) -> None:
        with self.lock:
            if len(self.wrong) < 100:
                self.wrong.append(what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("-o", "--output", type=Path, help="where the record goes")
    options = parser.parse_args()
    record = soak(options.artifact, options.seconds)
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")
    return int(bool(record["wrong"]))


def soak(artifact: Path, seconds: float) -> dict[str, Any]:
    """Return what was seen in so many seconds."""
    cases, found = make_cases(artifact), Findings()
    n_tokens = sum(len(case.texts) for case in cases) // len(cases) * 40
    options = ["--workers", "1", "--max-body-mb", str(_MAX_BODY_MB), "--max-queue-tokens", str(n_tokens * 8)]
    options += ["--cache-mb", "1", "--timeout-ms", "10000"]
    with Server(str(artifact), *options) as server:
        until = time.monotonic() + seconds
        loops = [lambda: well_behaved(server, cases, found)] * _N_CLIENTS
        loops += [lambda: misbehave(server, found)] * _N_FAULTS
        threads = [threading.Thread(target=_repeat, args=(loop, until, found)) for loop in loops]
        for thread in threads:
            thread.start()
        watch(server, found, until)
        for thread in threads:
            thread.join(timeout=60)
            if thread.is_alive():
                found.blame("a client was never answered")
        return report(server, found, seconds)


def make_cases(artifact: Path) -> list[Case]:
    """Return requests of 1 to 60 texts with the library's scores for them."""
    chance = random.Random(0)

    def text(most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))

    asked = [(text(6), [text(60) for _ in range(chance.choice([1, 5, 20, 60]))]) for _ in range(200)]
    with Reranker.load(artifact) as reranker:
        return [
            Case(query=query, texts=texts, scores=reranker.score([(query, text) for text in texts]).tolist())
            for query, texts in asked
        ]


def well_behaved(server: Server, cases: Sequence[Case], found: Findings) -> None:
    """Ask and compare to the last bit; a connection that breaks is no answer."""
    case = random.choice(cases)
    body = json.dumps({"query": case.query, "texts": case.texts, "raw_scores": True}).encode()
    status, answer, _ = _post(server.port, body)
    found.count(status)
    if status == 200:
        scores = {hit["index"]: float(np.float32(hit["score"])) for hit in json.loads(answer)}
        if [scores.get(i) for i in range(len(case.texts))] != case.scores:
            found.blame("wrong scores")
    elif status not in _REFUSALS:
        found.blame(f"status {status}: {answer[:200]!r}")


def misbehave(server: Server, found: Findings) -> None:
    name, fault = random.choice(list(FAULTS.items()))
    found.fault(name, fault(server.port))
    time.sleep(0.01)


def _sent(port: int, body: bytes, allowed: set[int]) -> str:
    status, _, _ = _post(port, body)
    return f"{status}" if status in allowed | {429} else f"unexpected {status}"


def _leave(port: int) -> str:
    body = json.dumps({"query": "one", "texts": [" ".join(random.choices(WORDS, k=50)) for _ in range(50)]}).encode()
    with _connected(port) as connection:
        connection.sendall(_head(len(body)) + body)
        time.sleep(random.random() * 0.05)
    return "left"


def _stop_writing(port: int) -> str:
    with _connected(port) as connection:
        connection.sendall(_head(1000) + b'{"query": ')
        time.sleep(random.random())
    return "left"


def _read_slowly(port: int) -> str:
    """Ask for a large answer and read it byte by byte, then no more."""
    texts = [" ".join(random.choices(WORDS, k=200)) for _ in range(100)]
    body = json.dumps({"query": "one", "texts": texts, "return_text": True}).encode()
    with _connected(port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(_head(len(body)) + body)
        with suppress(OSError):
            for _ in range(10):
                connection.recv(1)
                time.sleep(0.1)
    return "left"


def _flood_headers(port: int) -> str:
    with _connected(port) as connection:
        try:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\n" + b"x: " + b"y" * 1_000_000)
            return connection.recv(100)[:12].decode(errors="replace") or "closed"
        except OSError:
            return "closed"


def _stream_and_leave(port: int) -> str:
    body = json.dumps({"query": "one", "documents": WORDS * 5}).encode()
    with _connected(port) as connection:
        connection.sendall(_head(len(body), "/v1/rerank/stream") + body)
        with suppress(OSError):
            connection.recv(100)
    return "left"


def _random_bytes(port: int) -> str:
    with _connected(port) as connection:
        try:
            connection.sendall(random.randbytes(1000) + b"\r\n\r\n")
            return connection.recv(100)[:12].decode(errors="replace") or "closed"
        except OSError:
            return "closed"


FAULTS: Mapping[str, Callable[[int], str]] = {
    "malformed JSON": lambda port: _sent(port, b'{"query": "a", "texts": [', {400}),
    "wrong types": lambda port: _sent(port, b'{"query": 1, "texts": {"a": []}}', {422}),
    "invalid UTF-8": lambda port: _sent(port, b'{"query": "\xff\xfe", "texts": ["a"]}', {400}),
    "deep nesting": lambda port: _sent(port, b'{"query": "a", "texts": ["b"], "x": ' + b"[" * 500_000, {400}),
    "huge body": lambda port: _sent(port, b'{"query": "' + b"a" * (3 << 20) + b'"}', {413}),
    "leaving": _leave,
    "leaving a stream": _stream_and_leave,
    "stopping to write": _stop_writing,
    "reading slowly": _read_slowly,
    "a flood of headers": _flood_headers,
    "random bytes": _random_bytes,
}


def watch(server: Server, found: Findings, until: float) -> None:
    """Kill a worker now and then, and note how much memory there is in use."""
    next_kill, started = time.monotonic() + min(_KILL_EVERY_S, 2.0), time.monotonic()
    while time.monotonic() < until:
        workers = server.workers()
        found.resident.append(
            (time.monotonic() - started, resident_bytes(server.pid), sum(map(resident_bytes, workers)))
        )
        if time.monotonic() >= next_kill and workers:
            os.kill(workers[0], signal.SIGKILL)
            found.n_killed += 1
            next_kill += _KILL_EVERY_S
        if server.process.poll() is not None:
            found.blame("the server ended")
            return
        time.sleep(1.0)


def report(server: Server, found: Findings, seconds: float) -> dict[str, Any]:
    """Return what was seen, after checking that the server is as it was at the beginning."""
    time.sleep(2.0)
    figures = server.metrics()
    for name in ("queue_tokens", "queue_rows", "requests_in_flight", "body_bytes_in_flight"):
        if n := figures[f"rankrt_{name}"]:
            found.blame(f"{name} is {n} when nobody asks")
    if _post(server.port, b'{"query": "one", "texts": ["two"]}')[0] != 200:
        found.blame("the server does not answer any more")
    found.wrong += [f"{fault} {n} times" for fault, n in found.faults.items() if "unexpected" in fault]
    memory = np.array([row[1] for row in found.resident[len(found.resident) // 10 :]], float) / 1e6
    third = max(1, len(memory) // 3)
    before, after = float(np.median(memory[:third])), float(np.median(memory[-third:]))
    if seconds >= 300 and after > 1.1 * before:
        found.blame(f"memory grew from {before:.0f} to {after:.0f} MB")
    return {
        "benchmark": "server_soak",
        "model": server.artifact.name,
        "seconds": seconds,
        "n_requests": sum(found.statuses.values()),
        "statuses": dict(sorted(found.statuses.items())),
        "faults": dict(sorted(found.faults.items())),
        "n_workers_killed": found.n_killed,
        "worker_restarts": figures["rankrt_worker_restarts_total"],
        "server_mb_first_third": round(before, 1),
        "server_mb_last_third": round(after, 1),
        "server_mb_most": round(float(memory.max()), 1),
        "memory": _memory_over_time(found.resident),
        "wrong": found.wrong,
    }


def _memory_over_time(resident: Sequence[tuple[float, int, int]]) -> list[dict[str, float]]:
    """Return the medians of even parts of the time; of the worker too, which is 0 while it is started again."""
    parts = np.array_split(np.array(resident, float), min(_N_MEMORY_POINTS, len(resident)))
    names, units = ("seconds", "server_mb", "worker_mb"), (1, 1e6, 1e6)
    return [
        {name: round(float(x) / unit, 1) for name, unit, x in zip(names, units, np.median(part, axis=0), strict=True)}
        for part in parts
    ]


def _repeat(work: Callable[[], None], until: float, found: Findings) -> None:
    while time.monotonic() < until:
        try:
            work()
        except (OSError, http.client.HTTPException) as error:
            found.blame(f"no answer: {error!r}")


def _post(port: int, body: bytes) -> tuple[int, bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/rerank", body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), dict(response.headers)
    finally:
        connection.close()


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def _head(n_bytes: int, path: str = "/rerank") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {n_bytes}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


if __name__ == "__main__":
    sys.exit(main())
