"""A server in a process of its own, and a cheap client, because it shares the machine."""

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.harness.processes import children_of, cpu_s
from rankrt.host.child import child_command

# The server closes a connection after 75 idle seconds. The client closes it earlier and opens a new one.
_KEEP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, and the time that it took."""

    status: int
    seconds: float
    n_tokens: int
    body: bytes


class Server:
    """A process with `rankrt serve`."""

    def __init__(
        self,
        artifact: str,
        *options: str,
        port: int | None = None,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start one and wait until it is ready; `prefix` is a command that runs it, as another user for example."""
        self.artifact = Path(artifact)
        self.port = port or free_port()
        command = child_command("rankrt.cli.main", "serve", artifact, "--port", str(self.port))
        command = [*prefix, *command, "--log-level", "error", *options]
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
        self._wait_until_ready()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_ready(self) -> bool:
        return b'"ready"' in get(self.port, "/ready")

    def metrics(self) -> dict[str, float]:
        text = get(self.port, "/metrics").decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def workers(self) -> list[int]:
        """Return the ids of the processes that score."""
        return children_of(self.pid)

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time until now of the server and of its running workers."""
        return {"server": cpu_s(self.pid), "workers": sum(map(cpu_s, self.workers()))}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_ready(self) -> None:
        while True:
            if self.process.poll() is not None:
                raise RuntimeError("the server ended")
            with suppress(ConnectionError):
                if self.is_ready:
                    return
            time.sleep(0.05)


class Client:
    """One persistent connection. Its queries all differ, so no score is cached."""

    _numbers = itertools.count()

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._answered = time.perf_counter()

    def rank(self, query: str, passages: Sequence[str], **fields: Any) -> Reply:
        asked = {"query": new_query(query), "texts": list(passages), "raw_scores": True, **fields}
        body = json.dumps(asked).encode()
        if time.perf_counter() - self._answered > _KEEP_S:
            self._connection.close()
        started = time.perf_counter()
        self._connection.request("POST", "/rerank", body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        self._answered = time.perf_counter()
        seconds = self._answered - started
        n_tokens = int(response.headers.get("x-compute-tokens", 0))
        return Reply(status=response.status, seconds=seconds, n_tokens=n_tokens, body=content)


def new_query(query: str) -> str:
    """Return a new query of nearly the same length in tokens."""
    return f"{query} {next(Client._numbers)}"


def get(port: int, path: str) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()


def free_port() -> int:
    """Return a port that no process listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
