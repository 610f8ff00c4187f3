"""Which rows run next: a free lane takes the next rows of the queue. It waits for no window and no timer.

Every lane of every worker has a thread here. It takes a run from the queue, runs it and hands out the logits.
`admission` decides which requests are accepted and which go first, by the pace that is measured here. The cache has the
scores of earlier rows, and equal rows that wait or run are scored once. After a failed run each of its rows runs alone,
so a row that breaks its run fails no other row. While a worker is away its lanes take nothing. The rows wait for it,
or run on another one.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.backends.planner import RUN_TOKENS, Capacity, plan
from rankrt.errors import RankrtError, ScoreError
from rankrt.llm.prefixes import own_prefixes
from rankrt.server.scheduling.admission import KEPT_SHARE, TAKEN_SHARE, Pace, Refused, backlog_s, place
from rankrt.server.scheduling.queue import Job, Row, RowQueue
from rankrt.server.scheduling.score_cache import ScoreCache, digest_of
from rankrt.server.workers.local import Run, RunFailed, ServedModel, Worker, WorkerLost
from rankrt.text.pairs import Encoded

# Handing over a run takes 0.3 ms of processor time at its two ends. A model that computes more than RUN_TOKENS in the
# first time on one thread gets longer runs, up to that time. The second time is the least of a run: without it, 10
# documents of the tiny model were in five or six runs, hardly longer than the handing over.
_RUN_S, _LEAST_RUN_S = 0.003, 0.002
MOST_RUN_TOKENS = 1024

# A run counts for the pace under load if it has this part of the planner's tokens. Shorter ones cost several times as
# much for each token.
_TELLING_SHARE = 4
# A tokenizer checks so often whether there is room for its rows.
_ROOM_S = 0.02

# A row is given up after so many failed runs. One failure may come from a worker that was killed.
_MOST_FAILURES = 3

# At the end, a run in the server's own process gets so much time. It cannot be stopped, and no request waits for it.
_LAST_RUNS_S = 5.0

_logger = logging.getLogger("rankrt.server")


class QueueFull(RankrtError):
    """A request cannot be done in time. There should be room after `retry_after_s`; None means never."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLate(RankrtError):
    """The rest of a request takes longer than its time."""


class Stopping(RankrtError):
    """The scheduler starts no more runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A finished run, for the metrics."""

    n_rows: int
    n_tokens: int
    is_wide: bool
    seconds: float


@dataclass(eq=False, slots=True)
class _Lanes:
    """The state of the lanes of one worker."""

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
        self.queue = RowQueue()
        self._workers = workers
        self._max_queue_tokens = max_queue_tokens
        self._max_batch_tokens = max_batch_tokens
        self._on_finished = on_finished
        self._known: dict[bytes, Row] = {}
        self._abandoned: dict[str, RankrtError] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        self._paces: dict[tuple[str, tuple[int, ...]], Pace] = defaultdict(Pace)  # by a model's key and its exits
        self._n_workers = len(workers)
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
        """The reason why no worker can score now; None while one can."""
        outages = [worker.outage for worker in self._workers]
        return None if None in outages else outages[0]

    def admit(self, job: Job, expected: Int64Array) -> None:
        """Give a job its place, or raise QueueFull; `expected` are the estimated tokens of its pairs.

        Raises Stopping when the scheduler is closing.
        """
        with self._changed:
            if self._is_closing:
                raise Stopping("the server is going down")
            now, pace = time.monotonic(), self._pace(job)
            job.expected = expected
            job.expect(pace.tokens_per_expected)
            job.take_by, job.keep_by = (now + share * (job.deadline - now) for share in (TAKEN_SHARE, KEPT_SHARE))
            self._check_queue(job)
            found = place(self.queue.jobs, self._work(), job, job.n_ahead * pace.seconds_per_token, now)
            if isinstance(found, Refused):
                raise self._full(job, found, now)
            self.queue.insert(found, job)

    def submit(self, job: Job, encoded: Encoded, order: Sequence[int]) -> None:
        """Add rows to a job. They run in that order, unless their scores are known. Waits for room in the queue.

        A job that was not admitted goes last of its priority. Raises Stopping, or the error of an abandoned model.
        """
        ids = [encoded.row(i) for i in range(encoded.n_rows)]
        starts = encoded.passage_starts.tolist()
        digests = [digest_of(job.model.salt, row, start) for row, start in zip(ids, starts, strict=True)]
        prefixes = _prefixes(job.model, encoded)
        with self._changed:
            while not self._has_room(len(encoded.ids)) and not job.is_cancelled and not self._is_closing:
                self._changed.wait(_ROOM_S)
            if self._is_closing:
                raise Stopping("the server is going down")
            if (error := self._abandoned.get(job.model.key)) is not None:
                raise copy(error)  # the kept error would hold each frame that it is raised in
            if job.is_cancelled:
                return
            if job not in self.queue.jobs:
                self.queue.insert(sum(other.priority <= job.priority for other in self.queue.jobs), job)
            job.submitted_at = job.submitted_at or time.monotonic()
            first, n_own, rows = len(job.logits), 0, list[Row]()
            job.logits += [float("nan")] * len(ids)
            job.n_left += len(ids)
            for i in order:
                row = Row(model=job.model, ids=ids[i], passage_start=starts[i], digest=digests[i], prefix=prefixes[i])
                if row.prefix in job.prefixes:
                    row.n_shared = starts[i]
                n_own += row.n_own
                if (wanted := self._want(job, first + i, row)) is not None:
                    rows.append(wanted)
            self._learn(job, len(encoded.truncated), n_own)
            self.queue.add(job, rows)
            self._changed.notify_all()
        if job.n_left == 0:
            job.notify()

    def cancel(self, job: Job) -> None:
        """Stop working for a job, finished or not. Rows that others want still run."""
        with self._changed:
            self._cancel(job)

    def backlog_s(self) -> float:
        """Return the seconds until all admitted work is done."""
        with self._changed:
            return backlog_s(self.queue.jobs, self._work(), time.monotonic())

    def fail(self, key: str, error: RankrtError) -> None:
        """Fail the jobs that wait for a model, named by its key."""
        self._fail(lambda row: row.model.key == key, error)

    def abandon(self, key: str, error: RankrtError) -> None:
        """Fail these jobs, and later ones too: no worker will load that model any more."""
        with self._changed:
            self._abandoned[key] = error
        self.fail(key, error)

    def forget(self, key: str) -> None:
        """Keep nothing of a model that no request uses any more."""
        with self._changed:
            self._abandoned.pop(key, None)
            for of_model in [of_model for of_model in self._paces if of_model[0] == key]:
                del self._paces[of_model]

    def stop(self) -> None:
        """Start no more runs, and fail the waiting jobs."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._fail(lambda row: True, Stopping("the server is going down"))

    def close(self) -> None:
        """Stop, and wait a while for the last runs."""
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

    def _pace(self, job: Job) -> Pace:
        return self._pace_of(job.model)

    def _pace_of(self, model: ServedModel) -> Pace:
        return self._paces[model.key, model.exits]

    def _work(self) -> list[float]:
        """Return the seconds of work left of each job."""
        return [job.n_ahead * self._pace(job).seconds_per_token for job in self.queue.jobs]

    def _has_room(self, n_tokens: int) -> bool:
        return not self.queue.n_tokens or self.queue.n_tokens + n_tokens <= self._max_queue_tokens

    def _check_queue(self, job: Job) -> None:
        """Raise QueueFull if the tokens of all jobs with this one exceed the limit."""
        n_reserved = sum(other.n_reserved for other in self.queue.jobs)
        n_over = n_reserved + job.n_reserved - self._max_queue_tokens
        if n_over <= 0:
            return
        if job.n_reserved > self._max_queue_tokens:
            raise QueueFull(
                f"the request is too large: about {job.n_reserved:,.0f} tokens (limit {self._max_queue_tokens:,});"
                " send fewer documents at once",
                None,
            )
        seconds = max(1.0, n_over * self._pace(job).seconds_per_token)
        raise QueueFull(
            f"queue full: {n_reserved:,.0f} tokens wait, and this request has about {job.n_reserved:,.0f} (limit"
            f" {self._max_queue_tokens:,}); try again in {seconds:.0f} s",
            seconds,
        )

    def _full(self, job: Job, refused: Refused, now: float) -> QueueFull:
        seconds = max(1.0, refused.retry_after_s)
        work = job.n_ahead * self._pace(job).seconds_per_token
        return QueueFull(
            f"the server is busy for {backlog_s(self.queue.jobs, self._work(), now):.1f} s; this request takes about"
            f" {work:.1f} s and has {job.deadline - now:.1f} s; try again in {seconds:.0f} s",
            seconds,
        )

    def _learn(self, job: Job, n_pairs: int, n_tokens: int) -> None:
        """Learn the tokens of a block of texts."""
        n_expected = float(job.expected[job.n_known : job.n_known + n_pairs].sum())
        job.learn(n_pairs, n_tokens)
        if n_expected:
            self._pace(job).note_tokens(n_tokens, n_expected)

    def _want(self, job: Job, index: int, row: Row) -> Row | None:
        """Note that a job wants a row, or hand it the known logit; return the row if it has to be queued.

        It is another one if other jobs want an equal row.
        """
        logit = self.cache.get(row.digest)
        if logit is not None:
            job.n_cached += len(row)
            self._give(job, index, logit, row.n_own)
            return None
        if (known := self._known.get(row.digest)) is not None:
            row = known
            job.n_cached += len(row)
        else:
            self._known[row.digest] = row
            job.n_cached += row.n_shared
            if row.prefix is not None:
                job.prefixes.add(row.prefix)
        row.waiters.append((job, index))
        job.wanted.append(row)
        return None if row.state == "running" else row

    def _give(self, job: Job, index: int, logit: float, n_tokens: int) -> None:
        job.logits[index] = logit
        job.n_done += n_tokens
        job.n_left -= 1
        job.done_at = time.monotonic()

    def _serve(self, worker: Worker, lane: int, lanes: _Lanes) -> None:
        while (taken := self._next(worker, lanes)) is not None:
            rows, is_wide, free_since = taken
            started = time.monotonic()
            run = Run(
                key=rows[0].model.key,
                rows=[row.ids for row in rows],
                passage_starts=[row.passage_start for row in rows],
                exits=rows[0].model.exits,
                is_wide=is_wide,
            )
            try:
                logits = worker.run(lane, run)
                if len(logits) != len(rows):
                    raise RunFailed(f"{len(logits)} logits came for {len(rows)} rows")
            except (WorkerLost, RunFailed) as error:
                self._put_back(rows, error, lanes)
                continue
            except Exception as error:  # noqa: BLE001  the lane has to survive any error
                self._put_back(rows, RunFailed(f"{type(error).__name__}: {error}"), lanes)
                continue
            ended = time.monotonic()
            finished = Finished(
                n_rows=len(rows), n_tokens=sum(row.n_own for row in rows), is_wide=is_wide, seconds=ended - started
            )
            self._hand_out(rows, logits, lanes, finished, ended - free_since)
            try:
                self._on_finished(finished)
            except Exception:
                _logger.exception("a run was not counted")

    def _next(self, worker: Worker, lanes: _Lanes) -> tuple[list[Row], bool, float] | None:
        """Wait for rows that a lane may run; return them with the time since when it could. None at the end."""
        free_since = time.monotonic()
        with self._changed:
            while not self._is_closing:
                if taken := self._take(worker, lanes):
                    lanes.n_running += 1
                    now = time.monotonic()
                    for job in _jobs_of(taken[0]):
                        job.first_run_at = job.first_run_at or now
                    return *taken, free_since
                self._changed.wait()
                free_since = time.monotonic()
            return None

    def _take(self, worker: Worker, lanes: _Lanes) -> tuple[list[Row], bool] | None:
        """Take the next run if this worker may start it now, and tell whether it is a wide one."""
        self._drop_late_jobs()
        head = self.queue.head()
        if head is None or lanes.is_exclusive or not worker.can_run(head.model.key):
            return None
        capacity = head.model.capacity
        if lanes.n_running >= max(1, capacity.n_narrow):
            return None  # a worker may have more lanes than a model: on a GPU it has two
        must_be_wide = capacity.must_be_wide(head.n_own)
        # A row that failed before runs alone, so that no other row fails with it.
        must_be_alone = must_be_wide or head.n_failures > 0
        if must_be_alone and lanes.n_running:
            return None  # the other lanes finish first, and the last one takes it
        is_wide = must_be_wide or (lanes.n_running == 0 and self._wide_is_faster(capacity))
        lanes.is_exclusive = must_be_alone or is_wide
        budget, shared_budget = self._budgets(head.model)
        return self.queue.take(budget, capacity.layout, shared_budget=shared_budget), is_wide

    def _drop_late_jobs(self) -> None:
        """Give up the next job if the rest of it takes longer than its time; then check the one after it."""
        now = time.monotonic()
        while (job := self.queue.next_job()) is not None:
            pace, seconds = self._pace(job), job.deadline - now
            work = job.n_ahead * pace.seconds_per_token
            if job.is_partial or not pace.is_current or work <= seconds:
                return
            job.error = TooLate(
                f"the rest of this request takes about {work:.1f} s, and it has {max(0.0, seconds):.1f} s;"
                " send partial_results to get the documents that are scored in time"
            )
            self._cancel(job)
            job.notify()

    def _wide_is_faster(self, capacity: Capacity) -> bool:
        """Tell whether so few rows wait that a run on all threads of an idle worker is faster."""
        if capacity.n_threads == 1 or self.queue.n_own > 2 * RUN_TOKENS * capacity.n_threads:
            return False
        return bool(plan(self.queue.lengths(), capacity).wide)

    def _budgets(self, model: ServedModel) -> tuple[int, int]:
        """Return the tokens of a run of the next job, and those of a run that it shares with others.

        Both are the planner's, or more for a quick model.
        """
        n_lanes, capacity = len(self._threads), model.capacity
        budget, shared_budget = capacity.budget(self.queue.n_own, n_lanes), capacity.run_tokens
        pace = self._pace_of(model).seconds_per_token
        if capacity.n_narrow and not capacity.is_gpu and pace:
            a_lane = 1 / (pace * n_lanes)  # tokens a second
            most, least = min(MOST_RUN_TOKENS, int(a_lane * _RUN_S)), int(a_lane * _LEAST_RUN_S)
            share = -(-self.queue.n_tokens_of_next(most * n_lanes) // n_lanes)
            budget = max(budget, min(most, max(share, least)))
            shared_budget = max(shared_budget, min(most, least))
        return min(budget, self._max_batch_tokens or budget), shared_budget

    def _hand_out(
        self, rows: Sequence[Row], logits: Float32Array, lanes: _Lanes, finished: Finished, seconds: float
    ) -> None:
        """Give a run's logits to its jobs. `seconds` is its lane's time since the run before."""
        with self._changed:
            jobs = _jobs_of(rows)  # not earlier: a job may have joined until here
            self._note_pace(rows[0].model, finished, seconds)
            self._free(rows, lanes)
            for row, logit in zip(rows, logits.tolist(), strict=True):
                self._settle(row, logit)
        for job in jobs:
            if job.is_streamed or job.is_over:
                job.notify()

    def _settle(self, row: Row, logit: float) -> None:
        """Hand a row's logit to all jobs that want it."""
        if not np.isfinite(logit):
            self._give_up(row, ScoreError(f"the model answered {logit} for a text; use another precision"))
            return
        row.state = "done"
        self._known.pop(row.digest, None)
        self.cache.put(row.digest, logit)
        for job, index in row.waiters:
            self._give(job, index, logit, row.n_own)

    def _put_back(self, rows: Sequence[Row], error: RankrtError, lanes: _Lanes) -> None:
        """Queue the rows of a failed run again, each alone, and give up those that have failed too often."""
        if not self._is_closing:
            _logger.error("a run of %d rows failed: %s", len(rows), error)
        with self._changed:
            jobs = _jobs_of(rows)
            self._free(rows, lanes)
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
        self.queue.remove(job)
        for row in job.wanted:
            row.waiters = [waiter for waiter in row.waiters if waiter[0] is not job]
            if not row.waiters and row.state == "waiting":
                self._known.pop(row.digest, None)
                self.queue.abandon(row)

    def _note_pace(self, model: ServedModel, finished: Finished, seconds: float) -> None:
        """Note the time of a run as the whole server's: a wide run has its worker, a narrow one a lane of it."""
        pace, capacity = self._pace_of(model), model.capacity
        if pace.seconds_per_token and finished.n_tokens * _TELLING_SHARE < capacity.run_tokens:
            return
        n_lanes = 1 if finished.is_wide else max(1, capacity.n_narrow)
        pace.note_run(finished.n_tokens, seconds / (n_lanes * self._n_workers), at=time.monotonic())

    def _free(self, run: Sequence[Row], lanes: _Lanes) -> None:
        self.queue.note_end(run)
        lanes.n_running -= 1
        if lanes.is_exclusive or lanes.n_running == 0:
            lanes.is_exclusive = False
            self._changed.notify_all()


def _prefixes(model: ServedModel, encoded: Encoded) -> list[bytes | None]:
    """Return a digest of the beginning of each row; None where the model computes no beginning apart."""
    if not model.shares_prefixes:
        return [None] * encoded.n_rows
    lengths = own_prefixes(encoded).lengths.tolist()
    return [digest_of(model.salt, encoded.row(i)[:n], n) if n else None for i, n in enumerate(lengths)]


def _jobs_of(rows: Sequence[Row]) -> list[Job]:
    """Return the jobs that wait for any of these rows, each once."""
    return list({id(job): job for row in rows for job, _ in row.waiters}.values())
