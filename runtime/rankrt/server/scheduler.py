"""Which rows run next: what waits when a lane frees is what runs on it. No window, no timer.

Every lane of every worker has a thread here that takes a run from the fair queue, runs it and hands the logits out.
Rows that were scored before come from the cache, identical rows that wait or run are scored once. A run that fails is
taken apart, so that a row which breaks the engine takes no other row with it. While a worker is away its lanes take
nothing; the rows wait for it, or run on another one.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Float32Array, Int32Array
from rankrt.errors import RankrtError, ScoreError
from rankrt.planner import RUN_TOKENS, Capacity, plan
from rankrt.server.cache import ScoreCache, digest_of
from rankrt.server.queue import FairQueue, Job, Row
from rankrt.server.workers import Run, RunFailed, ServedModel, Worker, WorkerLost
from rankrt.tokenizer import Encoded

# Handing a run over takes 0.3 ms of processor time at its two ends. A model that does more than RUN_TOKENS in this time
# on one thread gets longer runs; nobody waits longer for a lane than that. What is left is not divided into runs that
# are hardly longer than the handing over: 10 documents of the tiny model were in five or six.
_RUN_S, _LEAST_RUN_S = 0.003, 0.002
MOST_RUN_TOKENS = 1024

# A row is given up when it has failed alone this often: once may be a worker that somebody else ended.
_MOST_FAILURES = 3

# A run in the server's own process cannot be ended, and no request waits for it.
_LAST_RUNS_S = 5.0

_logger = logging.getLogger("rankrt.server")


class QueueFull(RankrtError):
    """More tokens wait than may; `retry_after_s` is when there should be room."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Stopping(RankrtError):
    """Nothing runs any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a run was, for whoever counts."""

    n_rows: int
    n_tokens: int
    is_wide: bool
    seconds: float


@dataclass(eq=False, slots=True)
class _Lanes:
    """What the lanes of one worker are doing."""

    n_running: int = 0
    is_exclusive: bool = False


class Scheduler:
    """Runs rows on workers. Threads may share it."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        cache: ScoreCache,
        max_queue_tokens: int,
        max_batch_tokens: int | None = None,
        on_finished: Callable[[Finished], None] = lambda finished: None,
    ) -> None:
        self.cache = cache
        self.queue = FairQueue()
        self._workers = workers
        self._max_queue_tokens = max_queue_tokens
        self._max_batch_tokens = max_batch_tokens
        self._on_finished = on_finished
        self._known: dict[bytes, Row] = {}
        self._abandoned: dict[str, RankrtError] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        self._tokens_per_second = 0.0
        self._lane_speeds: dict[str, float] = {}
        self._threads: list[threading.Thread] = []
        self._threads += [
            threading.Thread(target=self._serve, args=(worker, i, lanes), name=f"lane {i}", daemon=True)
            for worker, lanes in ((worker, _Lanes()) for worker in workers)
            for i in range(worker.n_lanes)
        ]
        for worker in workers:
            worker.watch(self._wake)
        for thread in self._threads:
            thread.start()

    @property
    def outage(self) -> RankrtError | None:
        """Why no worker can score now; None while one can."""
        outages = [worker.outage for worker in self._workers]
        return None if None in outages else outages[0]

    def check_room(self) -> None:
        """Raise QueueFull if no more rows may wait."""
        if self.queue.n_tokens >= self._max_queue_tokens:
            raise self._full()

    def submit(self, job: Job, encoded: Encoded, order: Sequence[int]) -> None:
        """Add rows to a job; they run in that order, unless their scores are known.

        Raises Stopping, why its model was abandoned, or QueueFull for the first rows of a job; one that was admitted is
        not refused half-way.
        """
        ids = [encoded.row(i) for i in range(encoded.n_rows)]
        starts = encoded.passage_starts.tolist()
        digests = [digest_of(job.model.salt, row, start) for row, start in zip(ids, starts, strict=True)]
        with self._changed:
            if self._is_closing:
                raise Stopping("the server is going down")
            if (error := self._abandoned.get(job.model.key)) is not None:
                raise error
            if job.is_cancelled:
                return
            if job.submitted_at is None:
                self._admit(len(encoded.ids))
                job.submitted_at = time.monotonic()
            first = len(job.logits)
            job.logits += [float("nan")] * len(ids)
            job.n_left += len(ids)
            rows = [self._wanted(job, first + i, ids[i], starts[i], digests[i]) for i in order]
            self.queue.add(job, [row for row in rows if row is not None])
            self._changed.notify_all()
        if job.n_left == 0:
            job.notify()

    def cancel(self, job: Job) -> None:
        """Stop working for a job; rows that others want too go on."""
        with self._changed:
            self._cancel(job)

    def retry_after_s(self) -> float:
        """Estimate how long it takes to score half of what waits."""
        speed = self._tokens_per_second or 1000.0
        return max(1.0, self.queue.n_tokens / 2 / speed)

    def fail(self, key: str, error: RankrtError) -> None:
        """Fail the jobs that wait for a model, named by its key."""
        self._fail(lambda row: row.model.key == key, error)

    def abandon(self, key: str, error: RankrtError) -> None:
        """Fail them, and those that are still on their way here: no worker will load that model any more."""
        with self._changed:
            self._abandoned[key] = error
        self.fail(key, error)

    def stop(self) -> None:
        """Start no more runs; who waits is told so."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._fail(lambda row: True, Stopping("the server is going down"))

    def close(self) -> None:
        """Stop, and wait a while until the runs that go on have ended."""
        self.stop()
        limit = time.monotonic() + _LAST_RUNS_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fail(self, is_meant: Callable[[Row], bool], error: RankrtError) -> None:
        """Fail the jobs that wait for such a row."""
        with self._changed:
            jobs = _jobs_of([row for row in self._known.values() if is_meant(row)])
            for job in jobs:
                job.error = error
                self._cancel(job)
        for job in jobs:
            job.notify()

    def _admit(self, n_tokens: int) -> None:
        if self.queue.n_tokens and self.queue.n_tokens + n_tokens > self._max_queue_tokens:
            raise self._full()

    def _full(self) -> QueueFull:
        seconds = self.retry_after_s()
        return QueueFull(
            f"{self.queue.n_tokens} tokens wait already, at most {self._max_queue_tokens} may;"
            f" try again in {seconds:.0f} s",
            seconds,
        )

    def _wanted(self, job: Job, index: int, ids: Int32Array, start: int, digest: bytes) -> Row | None:
        """Note what a job wants, or hand it the logit that is known; return the row if it has to be queued."""
        logit = self.cache.get(digest)
        if logit is not None:
            job.n_cached += len(ids)
            self._give(job, index, logit)
            return None
        row = self._known.get(digest)
        if row is None:
            row = self._known[digest] = Row(model=job.model, ids=ids, passage_start=start, digest=digest)
        else:
            job.n_cached += len(ids)
        row.waiters.append((job, index))
        job.wanted.append(row)
        return None if row.state == "running" else row

    def _give(self, job: Job, index: int, logit: float) -> None:
        job.logits[index] = logit
        job.n_left -= 1
        job.done_at = time.monotonic()

    def _serve(self, worker: Worker, lane: int, lanes: _Lanes) -> None:
        while (taken := self._next(worker, lanes)) is not None:
            rows, is_wide = taken
            started = time.monotonic()
            run = Run(
                key=rows[0].model.key,
                rows=[row.ids for row in rows],
                passage_starts=[row.passage_start for row in rows],
                is_wide=is_wide,
            )
            try:
                logits = worker.run(lane, run)
                if len(logits) != len(rows):
                    raise RunFailed(f"{len(logits)} logits came for {len(rows)} rows")
            except (WorkerLost, RunFailed) as error:
                self._put_back(rows, error, lanes)
                continue
            except Exception as error:  # noqa: BLE001  whatever it is, the lane has to go on
                self._put_back(rows, RunFailed(f"{type(error).__name__}: {error}"), lanes)
                continue
            seconds = time.monotonic() - started
            n_tokens = sum(map(len, rows))
            finished = Finished(n_rows=len(rows), n_tokens=n_tokens, is_wide=is_wide, seconds=seconds)
            self._hand_out(rows, logits, lanes, finished)
            try:
                self._on_finished(finished)
            except Exception:
                _logger.exception("a run was not counted")

    def _next(self, worker: Worker, lanes: _Lanes) -> tuple[list[Row], bool] | None:
        """Wait for rows that a lane may run; None when the scheduler closes."""
        with self._changed:
            while not self._is_closing:
                if taken := self._take(worker, lanes):
                    lanes.n_running += 1
                    self._note_start(taken[0])
                    return taken
                self._changed.wait()
            return None

    def _take(self, worker: Worker, lanes: _Lanes) -> tuple[list[Row], bool] | None:
        """Take the next run if this worker may start it now, and tell whether it is a wide one."""
        head = self.queue.head()
        if head is None or lanes.is_exclusive or not worker.can_run(head.model.key):
            return None
        capacity = head.model.capacity
        if lanes.n_running >= max(1, capacity.n_narrow):
            return None  # a worker may have more lanes than this model has: a GPU's has two
        must_be_wide = capacity.must_be_wide(len(head))
        # What failed before runs while nothing else does, so that nothing else can fail with it.
        must_be_alone = must_be_wide or head.n_failures > 0
        if must_be_alone and lanes.n_running:
            return None  # the lanes run dry, and the last one takes it
        is_wide = must_be_wide or (lanes.n_running == 0 and self._wide_is_faster(capacity))
        lanes.is_exclusive = must_be_alone or is_wide
        return self.queue.take(self._budget(head.model), capacity.layout), is_wide

    def _wide_is_faster(self, capacity: Capacity) -> bool:
        """Tell whether what waits is so little that a run on all threads pays; asked of an idle worker."""
        if capacity.n_threads == 1 or self.queue.n_tokens > 2 * RUN_TOKENS * capacity.n_threads:
            return False
        return bool(plan(self.queue.lengths(), capacity).wide)

    def _budget(self, model: ServedModel) -> int:
        """Return how many tokens a run should have: what the planner wants, or more of a model that is quick."""
        n_tokens, capacity = self.queue.n_tokens, model.capacity
        budget = capacity.budget(n_tokens, len(self._threads))
        if capacity.n_narrow and not capacity.is_gpu and (speed := self._lane_speeds.get(model.key)):
            most = min(MOST_RUN_TOKENS, int(speed * _RUN_S))
            share = -(-self.queue.n_tokens_in_turn(most * len(self._threads)) // len(self._threads))
            budget = max(budget, min(most, max(share, int(speed * _LEAST_RUN_S))))
        return min(budget, self._max_batch_tokens or budget)

    def _note_start(self, rows: Sequence[Row]) -> None:
        now = time.monotonic()
        for job in _jobs_of(rows):
            job.first_run_at = job.first_run_at or now

    def _hand_out(self, rows: Sequence[Row], logits: Float32Array, lanes: _Lanes, finished: Finished) -> None:
        with self._changed:
            jobs = _jobs_of(rows)  # not earlier: until here, somebody may have joined
            self._note_speed(rows[0].model.key, lanes, finished)
            self._free(lanes)
            for row, logit in zip(rows, logits.tolist(), strict=True):
                self._settle(row, logit)
        for job in jobs:
            if job.is_streamed or job.is_over:
                job.notify()

    def _settle(self, row: Row, logit: float) -> None:
        """Hand a row's logit to all who want it."""
        if not np.isfinite(logit):
            self._give_up(row, ScoreError(f"the model answered {logit} for a text: this variant is not fit for it"))
            return
        row.state = "done"
        self._known.pop(row.digest, None)
        self.cache.put(row.digest, logit)
        for job, index in row.waiters:
            self._give(job, index, logit)

    def _put_back(self, rows: Sequence[Row], error: RankrtError, lanes: _Lanes) -> None:
        """Queue the rows of a failed run again, each alone, and fail those that have failed too often."""
        if not self._is_closing:
            _logger.error("a run of %d rows failed: %s", len(rows), error)
        with self._changed:
            jobs = _jobs_of(rows)
            self._free(lanes)
            for row in rows:
                row.n_failures += 1
                if row.waiters and row.n_failures < _MOST_FAILURES:
                    self.queue.retry(row)
                else:
                    self._give_up(row, error)
            self._changed.notify_all()
        for job in jobs:
            job.notify()

    def _give_up(self, row: Row, error: RankrtError) -> None:
        row.state = "done"
        self._known.pop(row.digest, None)
        for job, _ in row.waiters:
            job.error = error
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        job.is_cancelled = True
        for row in job.wanted:
            row.waiters = [waiter for waiter in row.waiters if waiter[0] is not job]
            if not row.waiters and row.state == "waiting":
                self._known.pop(row.digest, None)
                self.queue.abandon(row)

    def _note_speed(self, key: str, lanes: _Lanes, finished: Finished) -> None:
        speed = finished.n_tokens / max(finished.seconds, 1e-6)
        self._tokens_per_second = _averaged(self._tokens_per_second, speed * lanes.n_running)
        if not finished.is_wide:
            self._lane_speeds[key] = _averaged(self._lane_speeds.get(key, 0.0), speed)

    def _free(self, lanes: _Lanes) -> None:
        lanes.n_running -= 1
        if lanes.is_exclusive or lanes.n_running == 0:
            lanes.is_exclusive = False
            self._changed.notify_all()


def _averaged(before: float, now: float) -> float:
    """Return an average of what was seen last; 0 is nothing."""
    return before + (now - before) * 0.1 if before else now


def _jobs_of(rows: Sequence[Row]) -> list[Job]:
    """Return the jobs that wait for any of these rows, each once."""
    return list({id(job): job for row in rows for job, _ in row.waiters}.values())
