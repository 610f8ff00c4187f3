"""Clients that know the right answers: bit-identical scores, or a refusal with a reason."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.harness.served import get
from rankrt import Reranker

WORDS = ["one", "two", "three", "four", "zero", "panda", "bear", "China", "bamboo", "capital", "France", "river"]
# The statuses that a correct request may get under overload, and while no worker can score.
_REFUSALS = {429, 503, 504}
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request with its right scores."""

    query: str
    texts: Sequence[str]
    scores: Sequence[float]

    def body(self, **fields: object) -> bytes:
        return json.dumps({"query": self.query, "texts": self.texts, "raw_scores": True, **fields}).encode()


@dataclass(slots=True, kw_only=True)
class Findings:
    """The observations of all threads."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
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


def ask(port: int, cases: Sequence[Case], found: Findings, **fields: object) -> int:
    """Send a request, compare the scores bit by bit, and return the status. A broken connection is an error."""
    case = random.choice(cases)
    status, answer, _ = post(port, case.body(**fields))
    found.count(status)
    if status == 200:
        # A server prints the shortest digits that are read as the same float32.
        scores = {hit["index"]: float(np.float32(hit["score"])) for hit in json.loads(answer)}
        if [scores.get(i) for i in range(len(case.texts))] != case.scores:
            found.blame("wrong scores")
    elif status not in _REFUSALS or not answer.strip():
        found.blame(f"status {status}: {answer[:200]!r}")
    return status


def check_readiness(port: int, cases: Sequence[Case], found: Findings) -> None:
    """Blame a server that has no worker for a request, although it is ready before and after it.

    A worker that was ended and came back meanwhile is not a reason: the server cannot know of that before it happens.
    """
    before, is_ready = _n_restarts(port), b'"ready"' in get(port, "/ready")
    status, answer, _ = post(port, random.choice(cases).body(timeout_ms=5000))
    is_ready = is_ready and b'"ready"' in get(port, "/ready") and _n_restarts(port) == before
    if is_ready and status == 503 and b"documents were scored" in answer:
        found.blame(f"ready, and nothing was scored: {answer[:300]!r}")
    time.sleep(0.05)


def _n_restarts(port: int) -> bytes:
    """Return how often workers were started again, as the server's metrics write it."""
    return get(port, "/metrics").partition(b"\nrankrt_worker_restarts_total ")[2].partition(b"\n")[0]


class Crowd:
    """Threads that repeat their work until they are stopped."""

    def __init__(self, loops: Sequence[Callable[[], object]], found: Findings) -> None:
        self._found = found
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(loop,)) for loop in loops]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(timeout=2 * _LONGEST_WAIT_S)
            if thread.is_alive():
                self._found.blame("a client was never answered")

    def _repeat(self, loop: Callable[[], object]) -> None:
        while not self._is_over.is_set():
            try:
                loop()
            except (OSError, http.client.HTTPException) as error:
                self._found.blame(f"no answer: {error!r}")


def post(port: int, body: bytes, path: str = "/rerank") -> tuple[int, bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LONGEST_WAIT_S)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), dict(response.headers)
    finally:
        connection.close()
