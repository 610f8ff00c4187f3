"""A process with one system in it, spoken to in lines of JSON: python -m benchmarks.worker SYSTEM MODEL THREADS.

A request is {"query", "passages", "max_length"}, an answer {"seconds", "scores"}; the first line out is {"versions"}.
Only the call itself is timed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.systems import open_system


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call took, and the scores."""

    seconds: float
    scores: list[float]


class Worker:
    """The parent's end of such a process."""

    def __init__(self, system: str, model: str, n_threads: int, python: str = sys.executable) -> None:
        self.system = system
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", system, model, str(n_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_thread_environment(n_threads)},
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def call(self, query: str, passages: Sequence[str], max_length: int) -> Answer:
        assert self._process.stdin is not None
        request = {"query": query, "passages": list(passages), "max_length": max_length}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Answer(**self._read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._end()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._end()
            raise RuntimeError(f"{self.system} ended with status {self._process.returncode}; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        """Let the process end, or make it."""
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _thread_environment(n_threads: int) -> dict[str, str]:
    """Give every library that reads the environment the same budget."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(n_threads)) | {"TOKENIZERS_PARALLELISM": "true"}


def main() -> None:
    name, model, n_threads = sys.argv[1:]
    system = open_system(name, model, int(n_threads))
    print(json.dumps({"versions": system.versions}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        scores = system.score(**request)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "scores": scores}), flush=True)


if __name__ == "__main__":
    main()
