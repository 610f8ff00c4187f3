"""From an Ask to an Answer: tokenize in threads, schedule, wait no longer than the deadline, count what it took.

Knows no HTTP and no dialect.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.backends.planner import RUN_TOKENS, by_length
from rankrt.errors import RankrtError
from rankrt.llm.prefixes import shared_prefixes
from rankrt.scale import Scale
from rankrt.scoring import best_rows
from rankrt.server.failures import Failure
from rankrt.server.limits import Limits
from rankrt.server.models import Model, Models
from rankrt.server.scheduling.admission import expected_tokens
from rankrt.server.scheduling.queue import MOST_URGENT, Job
from rankrt.server.scheduling.scheduler import Scheduler
from rankrt.server.workers.local import RunFailed, ServedModel
from rankrt.text.options import Rules
from rankrt.text.pairs import Encoded, Pair, Worded

# Requests take turns at the tokenizer in blocks of so many pairs, or fewer with so many characters or more.
_BLOCK_PAIRS, _BLOCK_CHARS = 32, 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request wants, whatever its dialect.

    pairs        (query, passage) to score, in the order of the answer
    model        the name it calls the model by
    rules        fields of `Rules` that are other than the server's; max_length is lowered to the model's limit
    instruction, prompt_name  what the model is told to look for, or the name of such a text
    cutoff_layer  of a layerwise model: the layer whose score is wanted, if it is another than the server's
    wants_spans  whether the answer says which characters of the passages were read
    is_calibrated  whether the answer is told as probabilities, for which the model needs a calibration
    may_cut      whether texts may be truncated; if not, one that does not fit is an error
    priority     lower goes first
    timeout_ms   until it has to be answered
    is_partial   whether the pairs that were scored by then are an answer
    """

    pairs: Sequence[Pair]
    model: str | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    instruction: str | None = None
    prompt_name: str | None = None
    cutoff_layer: int | None = None
    wants_spans: bool = False
    is_calibrated: bool = False
    may_cut: bool = True
    priority: int = 0
    timeout_ms: int | None = None
    is_partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds: in the tokenizer, waiting for the first run, from there to the last score, and all together.

    The tokenizer still works while the first rows run. `compute` counts that time once: all without the waiting.
    """

    tokenization: float
    queue: float
    inference: float
    compute: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The scores of the pairs, and what they took.

    scale            that of `Ask.is_calibrated`: logits, or probabilities
    logits           (n_pairs,) NaN where a pair was not scored before the deadline
    truncated        (n_pairs,) whether some of the passage was not seen
    query_truncated  (n_pairs,) whether some of the query was not seen
    pair_tokens      (n_pairs,) tokens of a pair's rows, special ones counted; 0 where it was not tokenized in time
    n_cached         tokens of them that were not computed for this request
    read             (n_pairs, 2) the first and last + 1 character of the passage that was seen, if that was asked
    best             (n_pairs, 2) the same of the window that scored best, if that was asked and there are windows
    """

    model: Model
    scale: Scale
    logits: Float32Array
    truncated: BoolArray
    query_truncated: BoolArray
    pair_tokens: Int64Array
    n_cached: int
    timings: Timings
    read: Int64Array | None = None
    best: Int64Array | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.pair_tokens.sum())

    @property
    def is_scored(self) -> BoolArray:
        """Which pairs have a score."""
        return ~np.isnan(self.logits)

    @property
    def is_complete(self) -> bool:
        """Whether all pairs have a score."""
        return bool(self.is_scored.all())


class Evaluator:
    """Evaluates what requests ask. One event loop uses it."""

    def __init__(self, models: Models, scheduler: Scheduler, limits: Limits, n_tokenizer_threads: int) -> None:
        self.models = models
        self.scheduler = scheduler
        self.limits = limits
        self.n_threads = n_tokenizer_threads
        # A request that begins does not wait for the rest of one with 500 documents.
        self._first_blocks = ThreadPoolExecutor(n_tokenizer_threads, thread_name_prefix="tokenizer")
        self._later_blocks = ThreadPoolExecutor(max(1, n_tokenizer_threads // 2), thread_name_prefix="later tokenizer")

    async def evaluate(self, ask: Ask) -> Answer:
        """Score pairs. Raises a Failure, InputError, QueueFull or what a run raises."""
        async with self._begin(ask, in_order=ask.is_partial, is_streamed=False) as evaluation:
            while await evaluation.progress():
                pass
            return evaluation.answer()

    async def stream(self, ask: Ask) -> AsyncGenerator[tuple[Int64Array, Answer]]:
        """Score pairs and yield the numbers of those that are done since the last time, with the answer so far."""
        async with self._begin(ask, in_order=True, is_streamed=True) as evaluation:
            known, goes_on = np.zeros(len(ask.pairs), bool), True
            while goes_on:
                goes_on = await evaluation.progress()
                answer = evaluation.answer()
                yield np.flatnonzero(answer.is_scored & ~known), answer
                known = answer.is_scored

    def warm_up(self, model: Model) -> None:
        """Run a long row and a short one before anyone waits for them. Blocks. Raises what a run raises."""
        n_words = min(model.rules.max_length, RUN_TOKENS)
        encoded = model.tokenizer.encode([("warm", "up " * n_words), ("warm", "up")], model.rules)
        changed, limit_s = threading.Event(), 3 * self.limits.longest_run_s
        job = Job(model=model.served, priority=MOST_URGENT, notify=changed.set)
        self.scheduler.submit(job, encoded, range(encoded.n_rows))
        # A worker that is lost may come back, and its rows wait for it. This wait has a limit.
        limit = time.monotonic() + limit_s
        while not job.is_over:
            if not changed.wait(max(0.0, limit - time.monotonic())):
                self.scheduler.cancel(job)
                outage = self.scheduler.outage or RunFailed(f"{model.name} scored nothing within {limit_s:.0f} s")
                raise copy(outage)
            changed.clear()
        self.scheduler.cancel(job)
        if job.error is not None:
            raise copy(job.error)

    def close(self) -> None:
        """Stop the threads."""
        self._first_blocks.shutdown(cancel_futures=True)
        self._later_blocks.shutdown(cancel_futures=True)

    @asynccontextmanager
    async def _begin(self, ask: Ask, *, in_order: bool, is_streamed: bool) -> AsyncGenerator["_Evaluation"]:
        """Tokenize and queue what a request wants; stop working for it when the block is left."""
        if (n := len(ask.pairs)) > self.limits.max_documents:
            raise Failure("too_many", f"too many documents: {n} (limit {self.limits.max_documents})")
        with self.models.use(ask.model) as model:
            evaluation = _Evaluation(
                ask,
                model,
                self.limits.deadline_s(ask.timeout_ms),
                outage=lambda: self.scheduler.outage,
                is_streamed=is_streamed,
            )
            try:
                self.scheduler.admit(evaluation.job, expected_tokens(ask.pairs, evaluation.rules))
                await evaluation.until_deadline(self._submit(evaluation, in_order=in_order))
                yield evaluation
            finally:
                self.scheduler.cancel(evaluation.job)

    async def _submit(self, evaluation: "_Evaluation", *, in_order: bool) -> None:
        """Tokenize pairs block by block and queue their rows in that order; for a GPU in all threads at once.

        A processor has enough to do with one thread's rows; a GPU takes more than a thread can tokenize.
        """
        pairs, running = evaluation.ask.pairs, deque[Future[None]]()
        is_gpu = evaluation.model.served.capacity.is_gpu
        n_at_once = self.n_threads if is_gpu else 1
        before: Future[None] | None = None
        try:
            for block in _blocks(pairs):
                if len(running) == n_at_once:
                    await asyncio.wrap_future(running.popleft())
                pool = self._first_blocks if is_gpu or before is None else self._later_blocks
                before = pool.submit(self._submit_block, evaluation, block, before, in_order)
                running.append(before)
            while running:
                await asyncio.wrap_future(running.popleft())
        finally:
            running.clear()
            del before  # an error leads to this frame, which would lead to its future, and that to the error

    def _submit_block(
        self, evaluation: "_Evaluation", pairs: Sequence[Pair], before: Future[None] | None, in_order: bool
    ) -> None:
        started = time.monotonic()
        encoded = evaluation.model.tokenizer.encode(
            pairs, evaluation.rules, evaluation.queries, wants_spans=evaluation.ask.wants_spans
        )
        stopped = time.monotonic()
        if before is not None:
            before.result()  # it began earlier, so it never waits for this one
        evaluation.add(encoded, started, stopped)
        order = range(encoded.n_rows) if in_order else _quickest_order(encoded, evaluation.model.served)
        self.scheduler.submit(evaluation.job, encoded, order)


class _Evaluation:
    """One ask on its way."""

    def __init__(
        self, ask: Ask, model: Model, seconds: float, *, outage: Callable[[], RankrtError | None], is_streamed: bool
    ) -> None:
        self._loop, self._changed = loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:  # not a method: in a circle with the job, texts would stay until garbage is collected
            loop.call_soon_threadsafe(changed.set)

        self.ask = ask
        self.model = model
        self.rules = _rules(model, ask)
        self.scale = Scale.of(model.artifact, model.layer(ask.cutoff_layer), calibrated=ask.is_calibrated)
        self.job = Job(
            model=model.up_to(ask.cutoff_layer),
            priority=ask.priority,
            notify=notify,
            is_streamed=is_streamed,
            is_partial=ask.is_partial,
            deadline=self._loop.time() + seconds,
        )
        self._seconds = seconds
        self._outage = outage
        self.queries: dict[str, Worded] = {}  # tokenized once a request
        self._blocks: list[Encoded] = []
        self._started = time.monotonic()
        self._tokenization = 0.0
        self._tokenized_from: float | None = None
        self._tokenized_to = 0.0
        self._is_late = False

    async def until_deadline(self, work: Awaitable[object]) -> None:
        """Wait for work, and interrupt it at the deadline. That is a Failure unless a partial answer is wanted.

        As a context manager it would keep the request until garbage is collected: on Python 3.13 contextlib's frame has
        the error that leads to it.
        """
        try:
            async with asyncio.timeout_at(self.job.deadline):
                await work
        except TimeoutError:
            self._is_late = True
        if self._is_late and not self.ask.is_partial:
            raise self._too_late()  # not while the other error is handled, which leads to this task and so to this one

    def add(self, encoded: Encoded, started: float, stopped: float) -> None:
        """Take the rows of the next pairs, made in this time. Raises a Failure if they were cut and may not be."""
        if self._tokenized_from is None:
            self._tokenized_from = started
        # Blocks that were tokenized side by side count once.
        self._tokenization += max(0.0, stopped - max(started, self._tokenized_to))
        self._tokenized_to = max(stopped, self._tokenized_to)
        if not self.ask.may_cut and (encoded.truncated | encoded.query_truncated).any():
            index = sum(len(block.truncated) for block in self._blocks)
            index += int(np.flatnonzero(encoded.truncated | encoded.query_truncated)[0])
            raise Failure(
                "too_long",
                f"text {index} and its query have more than {self.rules.max_length} tokens, special ones counted, and"
                " `truncate` is false",
            )
        self._blocks.append(encoded)

    async def progress(self) -> bool:
        """Wait until more rows are done; False when there is no more to wait for. Raises what a run raised."""
        if self.job.n_left and self.job.error is None and not self._is_late:
            await self.until_deadline(self._changed.wait())
            self._changed.clear()
        if self.job.error is not None:
            raise copy(self.job.error)  # other jobs may have the same one, and it would lead to this one's frames
        return self.job.n_left > 0 and not self._is_late

    def answer(self) -> Answer:
        """Return what is known now."""
        n_pairs = len(self.ask.pairs)
        # In this order: blocks may still be added, and none may have rows that are not counted.
        logits = np.array(self.job.logits, np.float32)
        lengths, pair_of_row = self._rows()
        read, best = self._spans(logits, pair_of_row) if self.ask.wants_spans else (None, None)
        return Answer(
            model=self.model,
            scale=self.scale,
            logits=self._of_pairs(logits, pair_of_row[: len(logits)]),
            truncated=_flags([block.truncated for block in self._blocks], n_pairs),
            query_truncated=_flags([block.query_truncated for block in self._blocks], n_pairs),
            pair_tokens=np.bincount(pair_of_row, lengths, n_pairs).astype(np.int64),
            n_cached=self.job.n_cached,
            timings=self._timings(),
            read=read,
            best=best,
        )

    def _rows(self) -> tuple[Int64Array, Int64Array]:
        """Return the length of each row of all blocks, and its pair."""
        firsts = itertools.accumulate((len(block.truncated) for block in self._blocks), initial=0)
        pairs = [block.pair_of_row + first for block, first in zip(self._blocks, firsts, strict=False)]
        lengths, none = [block.lengths for block in self._blocks], np.zeros(0, np.int64)
        return np.concatenate([*lengths, none]), np.concatenate([*pairs, none])

    def _of_pairs(self, logits: Float32Array, pair_of_row: Int64Array) -> Float32Array:
        """Return the best logit of each pair's rows; NaN for pairs that have a row which is not done, or none yet."""
        of_pairs = np.full(len(self.ask.pairs), np.nan, np.float32)
        if self.rules.long_documents != "chunk":
            of_pairs[: len(logits)] = logits  # a row a pair
        elif len(logits):
            best = _best_rows(logits, pair_of_row)
            of_pairs[: len(best)] = logits[best]
            of_pairs[pair_of_row[np.isnan(logits)]] = np.nan
        return of_pairs

    def _spans(self, logits: Float32Array, pair_of_row: Int64Array) -> tuple[Int64Array, Int64Array | None]:
        """Return the characters of each passage that all its rows have together, and those of its best window."""
        n_pairs, none = len(self.ask.pairs), np.zeros((0, 2), np.int64)
        spans = np.concatenate([*(block.spans for block in self._blocks), none])
        read = np.tile(np.array([np.iinfo(np.int64).max, 0]), (n_pairs, 1))
        np.minimum.at(read[:, 0], pair_of_row, spans[:, 0])
        np.maximum.at(read[:, 1], pair_of_row, spans[:, 1])
        read[read[:, 0] > read[:, 1]] = 0  # not tokenized in time
        if self.rules.long_documents != "chunk":
            return read, None
        best = np.zeros((n_pairs, 2), np.int64)
        if len(logits):
            rows = _best_rows(logits, pair_of_row[: len(logits)])
            best[: len(rows)] = spans[rows]
        return read, best

    def _timings(self) -> Timings:
        job, now = self.job, time.monotonic()
        submitted = job.submitted_at or now
        first_run = job.first_run_at or submitted
        done = max(job.done_at or first_run, first_run)
        inference = done - first_run
        return Timings(
            tokenization=self._tokenization,
            queue=first_run - submitted,
            inference=inference,
            compute=submitted - (self._tokenized_from or submitted) + inference,
            total=now - self._started,
        )

    def _too_late(self) -> Failure:
        n_scored, n_ms = int(self.answer().is_scored.sum()), self._seconds * 1000
        scored = f"{n_scored} of {len(self.ask.pairs)} documents were scored within {n_ms:.0f} ms"
        if (outage := self._outage()) is not None:
            return Failure("unavailable", f"{scored}: {outage}", retry_after_s=5.0)
        return Failure("timeout", f"{scored}; ask for partial_results to get those")


def _blocks(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Yield pairs in blocks that take a thread about equally long, so that others have their turn."""
    start = n_chars = 0
    for i, (_, passage) in enumerate(pairs):
        n_chars += len(passage)
        if i + 1 - start == _BLOCK_PAIRS or n_chars >= _BLOCK_CHARS or i + 1 == len(pairs):
            yield pairs[start : i + 1]
            start, n_chars = i + 1, 0


def _quickest_order(encoded: Encoded, served: ServedModel) -> Sequence[int]:
    """Return the rows longest first; where beginnings are shared, those with the same one next to each other."""
    order = by_length(encoded.lengths)
    if served.shares_prefixes:
        order = order[np.argsort(shared_prefixes(encoded).of_row[order], kind="stable")]
    found: list[int] = order.tolist()
    return found


def _rules(model: Model, ask: Ask) -> Rules:
    """Return a model's rules with those that a request changes. Raises InputError if they cannot be kept."""
    given = dict(ask.rules)
    if ask.instruction is not None or ask.prompt_name is not None:
        given |= {"instruction": ask.instruction, "prompt_name": ask.prompt_name}
    if not given:
        return model.rules
    given["max_length"] = min(given.get("max_length") or model.rules.max_length, model.limit)
    if (most := given.get("query_max_length", model.rules.query_max_length)) is not None:
        given["query_max_length"] = min(most, given["max_length"])
    rules = replace(model.rules, **given)
    rules.check(model.artifact.manifest.template, model.limit)
    return rules


def _best_rows(logits: Float32Array, pair_of_row: Int64Array) -> Int64Array:
    """Return the best row of each pair that has one; a row that is not scored is worse than any other."""
    found = np.where(np.isnan(logits), -np.inf, logits)
    return best_rows(found, pair_of_row, int(pair_of_row[-1]) + 1)


def _flags(blocks: Sequence[BoolArray], n_pairs: int) -> BoolArray:
    flags = np.zeros(n_pairs, bool)
    found = np.concatenate([*blocks, np.zeros(0, bool)])
    flags[: len(found)] = found
    return flags
