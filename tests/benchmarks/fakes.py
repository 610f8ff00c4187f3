"""Systems with known delays, scores and faults, and a server that answers late: run in processes of their own."""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

CALL_S = 0.04


class Steady:
    """Takes CALL_S a call, however much it gets; a score is the length of its passage."""

    call_s = CALL_S

    def __init__(self, model: str, n_threads: int) -> None:
        self.versions = {"fake": "1"}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        print("this is no answer")
        time.sleep(self.call_s)
        return [float(len(passage)) for passage in passages]


class Slower(Steady):
    """Takes half as long again, and scores half a point more."""

    call_s = 1.5 * CALL_S

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        return [score + 0.5 for score in super().score(query, passages, max_length, batch_size)]


class Crashes(Steady):
    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        raise MemoryError("no room for the scores")


class Hangs(Steady):
    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        time.sleep(600)
        return []


class NeverLoads(Steady):
    def __init__(self, model: str, n_threads: int) -> None:
        raise ValueError("this model has no head")


class Cpus(Steady):
    """Scores each passage with the CPUs that the process may use."""

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        return [float(len(os.sched_getaffinity(0))) for _ in passages]


class OnDevice(Steady):
    """Scores each passage with the number of its device."""

    def __init__(self, model: str, n_threads: int, device: str = "cpu") -> None:
        super().__init__(model, n_threads)
        self._number = float(device.partition(":")[2] or -1)

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        return [self._number] * len(passages)


class _Handler(BaseHTTPRequestHandler):
    lock = threading.Lock()
    answered: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = request["texts"]
        with self.lock:  # one at a time, and at once if the query was there before
            time.sleep(0 if request["query"] in self.answered else CALL_S)
            self.answered.add(request["query"])
        body = json.dumps([{"index": i, "score": 0.0} for i in range(len(texts))]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
