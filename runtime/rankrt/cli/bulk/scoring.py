"""Chunks of pairs to logits: in this process, or in several that map the same weights. Knows no file and no format."""

import pickle
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import Self, TypeAlias

from rankrt.arrays import BoolArray, Float32Array
from rankrt.cli.bulk import worker
from rankrt.cli.bulk.chunks import Chunk, Scored
from rankrt.cli.scoring import placed
from rankrt.errors import InputError, RankrtError, ScoreError
from rankrt.host.child import child_command
from rankrt.reranker import Reranker
from rankrt.text.pairs import Pair

# A chunk is scored before its scores are written: enough rows for the planner to fill its runs, few enough that a large
# model on a CPU writes something every few seconds. A GPU encodes the next 512 pairs of a chunk while it scores.
_CHUNK_PAIRS, _GPU_CHUNK_PAIRS = 256, 1024
# How many chunks a process has in hand: the next one is read while it scores.
_WAITING = 2
_Found: TypeAlias = tuple[Float32Array, BoolArray]


def chunk_size(reranker: Reranker) -> int:
    """Return how many pairs are scored at once. It never changes, so that a GPU's runs are the same after a restart."""
    return _GPU_CHUNK_PAIRS if reranker.device.is_gpu else _CHUNK_PAIRS


def score_chunks(reranker: Reranker, chunks: Iterable[Chunk]) -> Iterator[Scored]:
    """Yield chunks with their logits, and whether each passage was truncated.

    Raises InputError or ScoreError, with its place, at a pair that cannot be scored, after the pairs before it.
    """
    for chunk in chunks:
        yield from _until_error(reranker, chunk)


def score_in_processes(reranker: Reranker, n_processes: int, chunks: Iterable[Chunk]) -> Iterator[Scored]:
    """Yield chunks with their logits in order, scored by processes that each load the reranker's model.

    The processes end with this one, however it ends. Raises RankrtError if one of them is killed.
    """
    pickled = pickle.dumps(reranker)
    waiting: deque[tuple[Chunk, Future[_Found]]] = deque()
    with ExitStack() as stack:
        idle: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(n_processes):
            idle.put(stack.enter_context(_Process(pickled)))
        pool = stack.enter_context(ThreadPoolExecutor(n_processes))
        stack.callback(pool.shutdown, cancel_futures=True)

        def score(pairs: Sequence[Pair]) -> _Found:
            process = idle.get()
            try:
                return process.score(pairs)
            finally:
                idle.put(process)

        for chunk in chunks:
            waiting.append((chunk, pool.submit(score, chunk.pairs)))
            if len(waiting) >= _WAITING * n_processes:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(chunk: Chunk, future: Future[_Found]) -> Scored:
    try:
        logits, truncated = future.result()
        return Scored(chunk=chunk, logits=logits, truncated=truncated)
    except (InputError, ScoreError) as error:
        raise type(error)(placed(error, _places(chunk))) from error


class _Process:
    """A worker; it ends when its standard input is closed."""

    def __init__(self, pickled: bytes) -> None:
        command = child_command(worker.__name__)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        self._asks, self._answers = self._process.stdin, self._process.stdout
        self._pickled = pickled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        for pipe in (self._asks, self._answers):
            with suppress(OSError):  # a process that has ended reads nothing more
                pipe.close()

    def score(self, pairs: Sequence[Pair]) -> _Found:
        """Return the logits of pairs, and whether passages were truncated. Raises what the worker raised."""
        try:
            self._asks.write(self._pickled + pickle.dumps(list(pairs)))
            self._asks.flush()
            self._pickled = b""
            answer = pickle.load(self._answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RankrtError(
                "one of the processes was ended from outside, most likely for lack of memory. Begin again with fewer"
                " processes: the scores in a checkpoint are kept"
            ) from error
        if isinstance(answer, RankrtError):
            raise answer
        found: _Found = answer
        return found


def _until_error(reranker: Reranker, chunk: Chunk) -> Iterator[Scored]:
    """Yield the scores of a chunk, in halves as long as one pair of it cannot be scored."""
    try:
        found = reranker.evaluate(chunk.pairs)
    except (InputError, ScoreError) as error:
        if len(chunk) == 1:
            raise type(error)(placed(error, _places(chunk))) from error
        middle = len(chunk) // 2
        yield from _until_error(reranker, chunk.cut(0, middle))
        yield from _until_error(reranker, chunk.cut(middle, len(chunk)))
        return
    yield Scored(chunk=chunk, logits=found.logits, truncated=found.truncated)


def _places(chunk: Chunk) -> list[str]:
    return [chunk.place(number) for number in range(len(chunk))]
