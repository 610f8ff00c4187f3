"""A server under twice the load it can take, beside clients that misbehave, while its host fails it in every way.

    python -m benchmarks.studies.server_soak --artifact ./artifact --minutes 30 -o benchmarks/results/server_soak.json

Workers are killed and stopped, files cut, moved and replaced, disks filled and limits reached
(`benchmarks.studies.faults`). Every request has to get an answer or a clear refusal. Every answer has to have the right
bits. Nothing may hang, the server has to be ready again after each fault, and memory and descriptors have
to stay flat. All of it is on loopback and bounded in count and time. The record is printed, and written with -o. The
last lines say what was found, and the exit status is 1 if something was not as it should be.
"""

import argparse
import json
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.crowd import WORDS, Crowd, Findings, ask, check_readiness, make_cases, post
from benchmarks.studies.faults import FAULTS, CannotTry, Stage, hung, recovered_s, staged
from rankrt.server.telemetry.metrics import resident_bytes

_N_CLIENTS = 24
_N_MISBEHAVING = 4
# A fault is there for one of these times, and the next one comes when the server was ready for a while.
_HOLD_S, _REST_S = (0.2, 1.0, 4.0), 5.0
# The pauses of a worker that comes back grow to 10 s; one that hangs is ended after twice --timeout-ms, or a minute.
_READY_WITHIN_S = 30.0
_HUNG_WITHIN_S = 90.0
_MAX_BODY_MB = 1
_N_MEMORY_POINTS = 30
# Of the last two thirds of the time, as caches and arenas fill in the first; shorter soaks show noise only.
_MOST_GROWTH, _FLAT_AFTER_S = 1.02, 600.0


@dataclass(slots=True, kw_only=True)
class Struck:
    """A fault of the server, and how long it took until it was ready again."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    not_tried: dict[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return sum(map(len, self.seconds.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--no-prepare", action="store_true", help="workers load from the artifact itself")
    parser.add_argument("-o", "--output", type=Path, help="where the record goes")
    options = parser.parse_args()
    record = soak(options.artifact, options.minutes * 60, *(["--no-prepare"] if options.no_prepare else []))
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")
    print(summary(record), file=sys.stderr)
    return int(bool(record["wrong"]))


def soak(artifact: Path, seconds: float, *options: str) -> dict[str, Any]:
    """Return what was seen in so many seconds."""
    cases, found = make_cases(artifact), Findings()
    n_tokens = sum(len(case.texts) for case in cases) // len(cases) * 40
    limits = ["--workers", "1", "--max-body-mb", str(_MAX_BODY_MB), "--max-queue-tokens", str(n_tokens * 8)]
    limits += ["--cache-mb", "1", "--timeout-ms", "10000"]
    with staged(artifact, *limits, *options) as stage:
        port = stage.server.port
        for case in cases:
            post(port, case.body())
        n_descriptors = stage.n_descriptors()
        loops: list[Callable[[], object]] = [lambda: ask(port, cases, found)] * _N_CLIENTS
        loops += [lambda: misbehave(port, found)] * _N_MISBEHAVING
        loops += [lambda: check_readiness(port, cases, found)]
        resident: list[tuple[float, int, int]] = []
        with Crowd(loops, found):
            struck = strike(stage, found, resident, time.monotonic() + seconds)
        return report(stage, found, struck, resident, seconds, n_descriptors)


def misbehave(port: int, found: Findings) -> None:
    name, behave = random.choice(list(MISBEHAVIOURS.items()))
    found.fault(name, behave(port))
    time.sleep(0.01)


def _sent(port: int, body: bytes, allowed: set[int]) -> str:
    status, _, _ = post(port, body)
    return f"{status}" if status in allowed | {429, 503} else f"unexpected {status}"


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


MISBEHAVIOURS: Mapping[str, Callable[[int], str]] = {
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


def strike(stage: Stage, found: Findings, resident: list[tuple[float, int, int]], until: float) -> Struck:
    """Do to the server all that there is, again and again, and note how much memory is in use meanwhile."""
    started, struck = time.monotonic(), Struck()
    every = {**FAULTS, "hung": hung} if until - started >= _FLAT_AFTER_S else FAULTS
    names = deque(every)
    while names and (left := until - time.monotonic()) > 0:
        name = names.popleft()
        if name == "hung" and left < 2 * _HUNG_WITHIN_S:
            continue  # too late to recover from it
        try:
            with every[name](stage):
                _watch(stage, resident, started, random.choice(_HOLD_S))
                if name == "hung":
                    _wait_for_its_end(stage, resident, started)
        except CannotTry as reason:
            struck.not_tried[name] = str(reason)
            continue
        if (seconds := recovered_s(stage, _READY_WITHIN_S)) is None:
            found.blame(f"not ready {_READY_WITHIN_S:.0f} s after: {name}")
        struck.seconds.setdefault(name, []).append(round(seconds or _READY_WITHIN_S, 2))
        if stage.server.process.poll() is not None:
            found.blame(f"the server ended after: {name}")
            break
        names.append(name)
        _watch(stage, resident, started, min(_REST_S, until - time.monotonic()))
    return struck


def _wait_for_its_end(stage: Stage, resident: list[tuple[float, int, int]], started: float) -> None:
    worker, limit = stage.worker, time.monotonic() + _HUNG_WITHIN_S
    while worker in stage.server.workers() and time.monotonic() < limit:
        _watch(stage, resident, started, 1.0)


def _watch(stage: Stage, resident: list[tuple[float, int, int]], started: float, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        now = time.monotonic()
        workers = sum(map(resident_bytes, stage.server.workers()))
        resident.append((now - started, resident_bytes(stage.server.pid), workers))
        if now >= until:
            return
        time.sleep(max(0.0, min(1.0, until - now)))


def report(
    stage: Stage,
    found: Findings,
    struck: Struck,
    resident: Sequence[tuple[float, int, int]],
    seconds: float,
    n_descriptors: int,
) -> dict[str, Any]:
    """Return what was seen, after checking that the server is as it was at the beginning."""
    time.sleep(2.0)
    figures = stage.server.metrics()
    for name in ("queue_tokens", "queue_rows", "requests_in_flight", "body_bytes_in_flight"):
        if n := figures[f"rankrt_{name}"]:
            found.blame(f"{name} is {n} without requests")
    if post(stage.server.port, b'{"query": "one", "texts": ["two"]}')[0] != 200:
        found.blame("the server does not answer any more")
    if (n_after := stage.n_descriptors()) > n_descriptors:
        found.blame(f"descriptors grew from {n_descriptors} to {n_after}")
    found.wrong += [f"{fault} {n} times" for fault, n in found.faults.items() if "unexpected" in fault]
    memory = np.array([row[1] for row in resident], float) / 1e6
    first, second, last = (round(float(np.median(part)), 1) for part in np.array_split(memory, 3))
    if seconds >= _FLAT_AFTER_S and last > _MOST_GROWTH * second:
        found.blame(f"memory grew from {second} to {last} MB between the second and the last third")
    return {
        "benchmark": "server_soak",
        "model": stage.artifact.name,
        "seconds": seconds,
        "n_requests": sum(found.statuses.values()),
        "statuses": dict(sorted(found.statuses.items())),
        "faults": dict(sorted(found.faults.items())),
        "host_faults": {name: len(times) for name, times in sorted(struck.seconds.items())},
        "ready_again_s": {name: max(times) for name, times in sorted(struck.seconds.items())},
        "not_tried": struck.not_tried,
        "worker_restarts": figures["rankrt_worker_restarts_total"],
        "descriptors_before": n_descriptors,
        "descriptors_after": n_after,
        "server_mb_first_third": first,
        "server_mb_second_third": second,
        "server_mb_last_third": last,
        "server_mb_most": round(float(memory.max()), 1),
        "memory": _memory_over_time(resident),
        "wrong": found.wrong,
    }


def summary(record: Mapping[str, Any]) -> str:
    """Return what was found, in a few lines."""
    lines = [
        f"{record['seconds'] / 60:.1f} minutes, {record['n_requests']:,} requests: {record['statuses']}",
        f"{sum(record['host_faults'].values())} faults: {record['host_faults']}",
        f"ready again after at most, s: {record['ready_again_s']}",
        *(f"not tried: {name}: {reason}" for name, reason in record["not_tried"].items()),
        f"server, MB in each third: {record['server_mb_first_third']}, {record['server_mb_second_third']},"
        f" {record['server_mb_last_third']}; descriptors {record['descriptors_before']}, {record['descriptors_after']}",
        *(f"WRONG: {what}" for what in record["wrong"]),
        "failed" if record["wrong"] else "passed",
    ]
    return "\n".join(lines)


def _memory_over_time(resident: Sequence[tuple[float, int, int]]) -> list[dict[str, float]]:
    """Return the medians of even parts of the time; of the worker too, which is 0 while it is started again."""
    parts = np.array_split(np.array(resident, float), min(_N_MEMORY_POINTS, len(resident)))
    names, units = ("seconds", "server_mb", "worker_mb"), (1, 1e6, 1e6)
    return [
        {name: round(float(x) / unit, 1) for name, unit, x in zip(names, units, np.median(part, axis=0), strict=True)}
        for part in parts
    ]


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def _head(n_bytes: int, path: str = "/rerank") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {n_bytes}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


if __name__ == "__main__":
    sys.exit(main())
