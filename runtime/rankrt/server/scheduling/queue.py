"""The queue of all requests: rows of token ids, taken in runs, in the order of the requests.

Knows neither threads nor a clock nor deadlines: its user holds the lock, and `admission` decides the order of requests.
The first request with rows fills a run. If there is room left, the next ones fill it. A row that several requests want
runs once.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rankrt.arrays import Int32Array, Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends.planner import Filling
from rankrt.errors import RankrtError
from rankrt.server.workers.local import ServedModel

# The bytes of a waiting row, besides 4 for each token: as many as 375 tokens take. A row counts as at least 32 tokens,
# so that the limit of tokens bounds the memory of short rows, too.
ROW_MEMORY, LEAST_ROW_TOKENS = 1500, 32
# The priority of a model's warm-up. No request waits for it, but all would have to.
MOST_URGENT = -(1 << 62)

State: TypeAlias = Literal["new", "waiting", "running", "done"]


@dataclass(eq=False, slots=True, kw_only=True)
class Row:
    """Token ids that wait for their logit.

    passage_start  the place of the passage in the row
    digest         a digest that no other row of any model has
    prefix         a digest of its beginning, if the model computes a beginning once for all rows that have it
    n_shared       how many of its tokens another row of its job computes
    waiters        the jobs that want it, with its number in each
    n_failures     how many runs with it have failed; after the first it runs alone
    """

    model: ServedModel
    ids: Int32Array
    passage_start: int
    digest: bytes
    prefix: bytes | None = None
    n_shared: int = 0
    state: State = "new"
    waiters: list[tuple["Job", int]] = field(default_factory=list)
    n_failures: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_own(self) -> int:
        """How many tokens are computed for it."""
        return len(self.ids) - self.n_shared

    @property
    def is_first(self) -> bool:
        """Whether it is the one of its job that computes their common beginning."""
        return self.prefix is not None and not self.n_shared


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """The rows of one request, and their state.

    notify       called, from any thread, when all rows are done or the job has failed
    is_streamed  whether it is also called whenever some rows are done
    priority     lower numbers go first
    rows         the rows that may still have to run, in this order
    prefixes     the beginnings that one of its rows computes
    wanted       all rows that it waits for or waited for
    logits       one for each submitted row; NaN until it is done
    n_left       how many rows are not done
    n_cached     the tokens that were not computed for it: known before, computed for another job, or shared by its rows
    expected     the estimated tokens of each pair
    n_known      how many pairs have been tokenized
    n_tokens     the tokens that are computed for these
    n_expected   all its tokens: the known ones, and the estimate of the rest
    n_done       those of rows that have their logit
    deadline     when it is given up, on the monotonic clock; take_by and keep_by of `admission.Entry` are earlier
    is_partial   whether the part that is done by then is an answer
    error        why it failed
    """

    model: ServedModel
    notify: Callable[[], None] = lambda: None
    is_streamed: bool = False
    priority: int = 0
    rows: deque[Row] = field(default_factory=deque)
    prefixes: set[bytes] = field(default_factory=set)
    wanted: list[Row] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    n_left: int = 0
    n_cached: int = 0
    expected: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    n_known: int = 0
    n_tokens: int = 0
    n_expected: float = 0.0
    n_done: int = 0
    deadline: float = math.inf
    take_by: float = math.inf
    keep_by: float = math.inf
    is_partial: bool = False
    is_cancelled: bool = False
    error: RankrtError | None = None
    submitted_at: float | None = None
    first_run_at: float | None = None
    done_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether all rows are done, or the job has failed."""
        return self.n_left == 0 or self.error is not None

    @property
    def n_ahead(self) -> float:
        """The tokens that are still to be computed, by the estimate."""
        return max(0.0, self.n_expected - self.n_done)

    @property
    def n_reserved(self) -> float:
        """The tokens that it counts as in the queue. Short rows cost more memory than their tokens."""
        return max(self.n_ahead, LEAST_ROW_TOKENS * len(self.expected))

    def expect(self, ratio: float) -> None:
        """Multiply the estimate of the pairs that are not tokenized yet by `ratio`."""
        self.n_expected = self.n_tokens + ratio * float(self.expected[self.n_known :].sum())

    def learn(self, n_pairs: int, n_tokens: int) -> None:
        """Take the tokens of the next pairs, and correct the estimate of the rest by all that are known."""
        self.n_known, self.n_tokens = self.n_known + n_pairs, self.n_tokens + n_tokens
        known = float(self.expected[: self.n_known].sum())
        self.expect(self.n_tokens / known if known else 1.0)

    def next_row(self) -> Row | None:
        """Return the next row that still has to run, and drop those before it."""
        while self.rows and (self.is_cancelled or self.rows[0].state != "waiting"):
            self.rows.popleft()
        return self.rows[0] if self.rows else None


class RowQueue:
    """Jobs in order, with rows to run.

    n_tokens  of the rows that wait
    n_own     how many of these are to be computed, as rows of a decoder begin alike
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self.n_own = 0
        self.n_rows = 0
        self.jobs: list[Job] = []
        self._retries: deque[Row] = deque()
        # How many rows wait with each prefix, and the prefixes that are being computed.
        self._n_waiting: Counter[bytes] = Counter()
        self._in_progress: set[bytes] = set()

    def insert(self, index: int, job: Job) -> None:
        """Give a job its place in the order; its rows may come later."""
        self.jobs.insert(index, job)

    def remove(self, job: Job) -> None:
        """Forget a job."""
        if job in self.jobs:
            self.jobs.remove(job)

    def add(self, job: Job, rows: list[Row]) -> None:
        """Append rows to a job that has a place. A row may be in several jobs; it is counted once."""
        job.rows.extend(rows)
        for row in rows:
            if row.state == "new":
                row.state = "waiting"
                self._count(row, +1)

    def abandon(self, row: Row) -> None:
        """Drop a waiting row that no job wants any more."""
        row.state = "done"
        self._count(row, -1)

    def retry(self, row: Row) -> None:
        """Put back a row whose run failed. It goes first, and alone."""
        row.state = "waiting"
        self._count(row, +1)
        self._retries.append(row)

    def head(self) -> Row | None:
        """Return the next row."""
        while self._retries and self._retries[0].state != "waiting":
            self._retries.popleft()
        if self._retries:
            return self._retries[0]
        job = self.next_job()
        return job.next_row() if job else None

    def next_job(self) -> Job | None:
        """Return the first job that has a row to run.

        While another lane computes the prefix of that job, one of its priority whose prefix is not in progress goes
        first: otherwise this lane would compute the same prefix at the same time.
        """
        jobs = ((job, row) for job in self.jobs if (row := job.next_row()) is not None)
        first, row = next(jobs, (None, None))
        if first is None or row is None or row.prefix not in self._in_progress:
            return first
        others = (job for job, row in jobs if job.priority == first.priority and row.prefix not in self._in_progress)
        return next(others, first)

    def note_end(self, run: Sequence[Row]) -> None:
        """Note that a run has ended: its prefix is not in progress any more."""
        self._in_progress.difference_update(row.prefix for row in run if row.prefix is not None)

    def n_tokens_of_next(self, enough: int) -> int:
        """Count the tokens to be computed that wait in the next job, up to `enough`."""
        n_tokens, job = 0, self.next_job()
        for row in job.rows if job is not None else ():
            n_tokens += row.n_own if row.state == "waiting" else 0
            if n_tokens >= enough:
                return enough
        return n_tokens

    def lengths(self) -> Int64Array:
        """Return the tokens to be computed of each row that waits, in any order."""
        rows = {id(row): row.n_own for job in self.jobs for row in job.rows if row.state == "waiting"}
        return np.array(list(rows.values()), np.int64)

    def take(self, budget: int, layout: Layout, *, shared_budget: int | None = None) -> list[Row]:
        """Take the next rows of one model: at most `budget` tokens, or the first row if it is longer.

        The next job fills the run. Jobs after it fill the rest, as the layout allows, up to the shared budget. With a
        larger one, ten documents would wait for the thousand that share their run.

        Rows with different prefixes share a run only if no other row that waits has the prefix of either. A worker
        keeps the prefix of a run that has one, and to compute it again costs more tokens than a run for itself.
        """
        first = self.head()
        if first is None:
            return []
        if self._retries:
            self._retries.popleft()
            return [self._mark_running(first)]
        next_job = self.next_job()
        assert next_job is not None, "the first row is that of the next job"
        run, filling, limit, is_first_alone = list[Row](), Filling(), budget, self._is_alone(first)
        for job in self.jobs[self.jobs.index(next_job) :]:
            while (row := job.next_row()) is not None:
                begins_alike = row.prefix == first.prefix or (is_first_alone and self._is_alone(row))
                is_like_first = row.model is first.model and row.n_failures == first.n_failures == 0
                if run and not (begins_alike and is_like_first and filling.takes(row.n_own, limit, layout)):
                    return run
                run.append(self._mark_running(row))
                filling.add(row.n_own)
            if run and shared_budget is not None:
                limit = min(budget, shared_budget)
        return run

    def _mark_running(self, row: Row) -> Row:
        row.state = "running"
        self._count(row, -1)
        if row.is_first and row.prefix is not None:
            self._in_progress.add(row.prefix)
        return row

    def _is_alone(self, row: Row) -> bool:
        """Tell whether a row that waits computes a prefix that no other row waits for."""
        return row.is_first and row.prefix is not None and self._n_waiting[row.prefix] == 1

    def _count(self, row: Row, sign: int) -> None:
        self.n_tokens += sign * len(row)
        self.n_own += sign * row.n_own
        self.n_rows += sign
        if row.prefix is not None:
            self._n_waiting[row.prefix] += sign
            if not self._n_waiting[row.prefix]:
                del self._n_waiting[row.prefix]
