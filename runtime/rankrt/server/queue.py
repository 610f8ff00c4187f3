"""The queue that all requests share: rows of token ids, taken in runs, fairly by request.

Knows no threads, no clock and no model: whoever uses it holds the lock. Of sixteen runs fifteen go to the request that
was served the fewest tokens so far (least attained service), so that ten documents are not stuck behind a thousand; one
goes to the request that came first, so that a thousand documents are not stuck behind ten all the time. Tokens are
counted in portions, and requests of one portion go in the order in which they came: small ones that come together are
done one after the other, not all of them at the end. Rows that several requests wait for run once.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal, TypeAlias

import numpy as np

from rankrt.arrays import Int32Array, Int64Array
from rankrt.artifact import Layout
from rankrt.errors import RankrtError
from rankrt.planner import Filling
from rankrt.server.workers import ServedModel

# Every so many runs one goes to the request that came first: it never gets less than this share. With a fourth, ten
# documents beside five hundred of a quick model took a quarter longer at p99.
_SENIOR_TURN = 16
# Ten documents are 1,500 tokens or fewer; who was served so many is behind those who come.
PORTION_TOKENS = 2048
# And every so many, jobs are forgotten that ran out of rows below the top of the heap.
_PURGE_TURN = 256

State: TypeAlias = Literal["new", "waiting", "running", "done"]


@dataclass(eq=False, slots=True, kw_only=True)
class Row:
    """Token ids that wait for their logit.

    passage_start  where in the row the passage begins
    digest         what no other row of any model has
    waiters        the jobs that want it, with its number there
    n_failures     how often a run failed that it was part of; from the first on it runs alone
    """

    model: ServedModel
    ids: Int32Array
    passage_start: int
    digest: bytes
    state: State = "new"
    waiters: list[tuple["Job", int]] = field(default_factory=list)
    n_failures: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """The rows of one request, and what is known of them.

    notify     called, from any thread, when all rows are done or the job has failed
    is_streamed  whether it is called whenever some rows are done, too
    priority   lower goes first, whatever else waits
    rows       those that may still have to run, in that order
    wanted     all that it waits for or waited for
    logits     one for each row that was submitted; NaN where it is not done
    n_left     how many of them are not done
    n_cached   the tokens that were not computed for it: known before, or computed for another
    n_served   the tokens that it was served
    arrival    its number among all jobs of the queue
    error      why it failed
    """

    model: ServedModel
    notify: Callable[[], None] = lambda: None
    is_streamed: bool = False
    priority: int = 0
    rows: deque[Row] = field(default_factory=deque)
    wanted: list[Row] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    n_left: int = 0
    n_cached: int = 0
    n_served: int = 0
    arrival: int = 0
    is_cancelled: bool = False
    error: RankrtError | None = None
    submitted_at: float | None = None
    first_run_at: float | None = None
    done_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.n_left == 0 or self.error is not None

    @property
    def n_portions(self) -> int:
        """The whole portions that it was served."""
        return self.n_served // PORTION_TOKENS

    def next_row(self) -> Row | None:
        """Return the next row that still has to run, and forget those before it that need not."""
        while self.rows and (self.is_cancelled or self.rows[0].state != "waiting"):
            self.rows.popleft()
        return self.rows[0] if self.rows else None


class FairQueue:
    """Jobs with rows to run."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.n_rows = 0
        self._heap: list[tuple[int, int, int, Job]] = []
        self._by_arrival: dict[int, Job] = {}
        self._retries: deque[Row] = deque()
        self._n_arrived = 0
        self._n_taken = 0

    def add(self, job: Job, rows: list[Row]) -> None:
        """Append rows to a job, which is queued if it is not. A row may be in several jobs; it is counted once."""
        job.rows.extend(rows)
        for row in rows:
            if row.state == "new":
                row.state = "waiting"
                self._count(row, +1)
        if id(job) not in self._by_arrival:
            self._n_arrived += 1
            job.arrival = job.arrival or self._n_arrived
            self._by_arrival[id(job)] = job
            self._push(job)

    def abandon(self, row: Row) -> None:
        """Forget a waiting row that nobody wants any more."""
        row.state = "done"
        self._count(row, -1)

    def retry(self, row: Row) -> None:
        """Put back a row whose run failed: it goes first, and alone."""
        row.state = "waiting"
        self._count(row, +1)
        self._retries.append(row)

    def head(self) -> Row | None:
        """Return the row that is next."""
        while self._retries and self._retries[0].state != "waiting":
            self._retries.popleft()
        if self._retries:
            return self._retries[0]
        job = self._next_job()
        return job.next_row() if job else None

    def n_tokens_in_turn(self, enough: int) -> int:
        """Count the tokens that wait in jobs which were served as little as the one that is next, up to `enough`."""
        if (first := self._next_job()) is None:
            return 0
        n_tokens, turn = 0, (first.priority, first.n_portions)
        for job in self._by_arrival.values():
            if (job.priority, job.n_portions) == turn:
                for row in job.rows:
                    n_tokens += len(row) if row.state == "waiting" else 0
                    if n_tokens >= enough:
                        return enough
        return n_tokens

    def lengths(self) -> Int64Array:
        """Return the lengths of all rows that wait, in no order."""
        jobs = self._by_arrival.values()
        rows = {id(row): len(row) for job in jobs for row in job.rows if row.state == "waiting"}
        return np.array(list(rows.values()), np.int64)

    def take(self, budget: int, layout: Layout) -> list[Row]:
        """Take the next rows of one model, at most `budget` tokens unless the first is longer; [] if there is none.

        The job whose turn it is fills the run; what it leaves, the next ones may fill, as the layout allows. One that
        was served more fills it no further than pays: ten documents would wait for those of a thousand beside them.
        """
        first = self.head()
        if first is None:
            return []
        if self._retries:
            self._retries.popleft()
            return [self._taken(first)]
        run, filling = list[Row](), Filling()
        job = self._next_job()
        assert job is not None, "its row is the first"
        host, n_portions = job, job.n_portions
        self._n_taken += 1
        if self._n_taken % _PURGE_TURN == 0:
            self._purge()
        while job is not None and (row := job.next_row()) is not None:
            is_served_more = job is not host and job.n_portions > n_portions
            limit = min(budget, first.model.capacity.run_tokens) if is_served_more else budget
            if run and not (_may_share(row, first) and filling.takes(len(row), limit, layout)):
                break
            run.append(self._taken(row))
            filling.add(len(row))
            job.n_served += len(row)
            if job.next_row() is None:
                job = self._least_served()
        return run

    def _next_job(self) -> Job | None:
        least = self._least_served()
        if least is None or self._n_taken % _SENIOR_TURN < _SENIOR_TURN - 1:
            return least
        of_its_priority = (job for job in self._by_arrival.values() if job.priority == least.priority)
        return next((job for job in of_its_priority if job.next_row() is not None), least)

    def _least_served(self) -> Job | None:
        """Return the top of the heap; those that have no rows left, or were served since, lie deeper or not at all."""
        while self._heap:
            _, n_portions, _, job = self._heap[0]
            if job.next_row() is not None and n_portions == job.n_portions:
                return job
            heappop(self._heap)
            if job.next_row() is not None:
                self._push(job)
            else:
                del self._by_arrival[id(job)]
        return None

    def _purge(self) -> None:
        self._by_arrival = {key: job for key, job in self._by_arrival.items() if job.next_row() is not None}
        self._heap = []
        for job in self._by_arrival.values():
            self._push(job)

    def _push(self, job: Job) -> None:
        heappush(self._heap, (job.priority, job.n_portions, job.arrival, job))

    def _taken(self, row: Row) -> Row:
        row.state = "running"
        self._count(row, -1)
        return row

    def _count(self, row: Row, sign: int) -> None:
        self.n_tokens += sign * len(row)
        self.n_rows += sign


def _may_share(row: Row, first: Row) -> bool:
    """Tell whether two rows may be in one run, whatever their lengths."""
    return row.model is first.model and row.n_failures == first.n_failures == 0
