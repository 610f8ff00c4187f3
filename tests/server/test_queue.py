"""The fair queue: whose rows run next, and which run together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt.planner import RUN_TOKENS
from rankrt.server.queue import PORTION_TOKENS, FairQueue, Job, Row
from tests.server.support import model

MODEL = model()


def rows(*lengths: int, of=MODEL) -> list[Row]:
    return [Row(model=of, ids=np.zeros(length, np.int32), passage_start=0, digest=b"") for length in lengths]


def queued(*jobs: list[Row], priorities: tuple[int, ...] = ()) -> tuple[FairQueue, list[Job]]:
    queue, made = FairQueue(), []
    for i, wanted in enumerate(jobs):
        job = Job(model=MODEL, priority=priorities[i] if priorities else 0)
        queue.add(job, wanted)
        made.append(job)
    return queue, made


def taken(queue: FairQueue, budget: int, layout="packed") -> list[list[Row]]:
    runs = []
    while run := queue.take(budget, layout):
        runs.append(run)
    return runs


def test_a_run_has_no_more_tokens_than_the_budget_unless_its_first_row_has():
    queue, _ = queued(rows(50, 30, 30, 20, 200))
    assert [[len(row) for row in run] for run in taken(queue, 100)] == [[50, 30], [30, 20], [200]]


def test_ten_documents_are_not_stuck_behind_a_thousand():
    many, few = rows(*[100] * 1000), rows(*[100] * 10)
    queue, _ = queued(many)
    for _ in range(20):
        queue.take(100, "packed")
    queue.add(Job(model=MODEL), few)
    first = [row for run in taken(queue, 100)[:14] for row in run]
    assert sum(row in few for row in first) == 10, "nearly all runs are theirs"


def test_a_thousand_documents_are_not_stuck_behind_ten_all_the_time():
    many = rows(*[100] * 1000)
    queue, _ = queued(many)
    n_of_many = 0
    for _ in range(100):
        queue.add(Job(model=MODEL), rows(*[100] * 4))
        n_of_many += sum(row in many for _ in range(4) for row in queue.take(100, "packed"))
    assert n_of_many >= 24, "every sixteenth run is theirs"


def test_a_lower_priority_goes_first():
    urgent, usual = rows(10, 10), rows(10, 10)
    queue, _ = queued(usual, urgent, priorities=(5, 0))
    assert [row for run in taken(queue, 10) for row in run] == urgent + usual


def test_a_run_that_one_request_does_not_fill_is_filled_by_the_next():
    queue, _ = queued(rows(40), rows(40), rows(40))
    assert [len(run) for run in taken(queue, 100)] == [2, 1]


def served_much() -> FairQueue:
    """A queue with a request that was served a portion and goes on; the next turn is the least served one's."""
    queue, (job,) = queued(rows(*[100] * 100))
    for _ in range(4):
        queue.take(1000, "packed")
    assert job.n_portions == 1
    return queue


def test_a_request_that_was_served_much_adds_no_more_to_the_run_of_a_new_one_than_pays():
    queue = served_much()
    queue.add(Job(model=MODEL), rows(100))
    assert len(queue.take(1000, "packed")) == RUN_TOKENS // 100
    assert len(queue.take(1000, "packed")) == 10


def test_what_waits_in_this_turn_is_counted_without_those_that_were_served_more():
    queue = served_much()
    assert queue.n_tokens_in_turn(500) == 500
    queue.add(Job(model=MODEL), rows(70, 30))
    assert queue.n_tokens_in_turn(500) == 100
    assert FairQueue().n_tokens_in_turn(500) == 0


def test_stacked_rows_of_a_run_have_one_length():
    queue, _ = queued(rows(30, 30, 20), rows(30, 20))
    runs = taken(queue, 1000, "stacked")
    assert [[len(row) for row in run] for run in runs] == [[30, 30], [20], [30], [20]]


def test_rows_of_two_models_never_run_together():
    other = model("1")
    queue, _ = queued(rows(10), rows(10, of=other))
    assert [[row.model for row in run] for run in taken(queue, 100)] == [[MODEL], [other]]


def test_a_row_that_two_requests_wait_for_runs_once_and_counts_once():
    shared = rows(10)
    queue, _ = queued(shared, shared)
    assert (queue.n_tokens, queue.n_rows) == (10, 1)
    assert taken(queue, 100) == [shared]
    assert queue.n_tokens == 0


def test_what_nobody_wants_any_more_does_not_run():
    wanted = rows(10, 20)
    queue, _ = queued(wanted)
    queue.abandon(wanted[0])
    assert queue.n_tokens == 20
    assert taken(queue, 100) == [[wanted[1]]]


def test_a_row_whose_run_failed_goes_first_and_alone():
    wanted = rows(10, 10, 10)
    queue, _ = queued(wanted)
    (failed, *_) = queue.take(20, "packed")
    failed.n_failures += 1
    queue.retry(failed)
    assert [len(run) for run in taken(queue, 100)] == [1, 1]


@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=20), max_size=8), st.integers(1, 400))
def test_every_row_is_taken_once(jobs: list[list[int]], budget: int):
    wanted = [rows(*lengths) for lengths in jobs]
    queue, _ = queued(*wanted)
    found = [row for run in taken(queue, budget) for row in run]
    assert sorted(map(id, found)) == sorted(id(row) for job in wanted for row in job)
    assert (queue.n_tokens, queue.n_rows, queue.head()) == (0, 0, None)


@given(st.integers(1, 5), st.integers(1, 500), st.integers(1, 500))
def test_large_requests_of_one_size_are_served_alike(n_jobs: int, length: int, n_runs: int):
    queue, jobs = queued(*[rows(*[length] * 500) for _ in range(n_jobs)])
    for _ in range(n_runs):
        queue.take(length, "packed")
    first, *others = [job.n_served for job in jobs]
    if others:
        a_portion = PORTION_TOKENS + length
        assert max(others) - min(others) <= a_portion
        assert first <= max(others) + a_portion + n_runs * length // 16, "who came first has every sixteenth run"


def test_small_requests_that_come_together_are_done_one_after_the_other():
    queue, jobs = queued(*[rows(*[100] * 10) for _ in range(4)])
    for _ in range(5):
        queue.take(200, "packed")
    assert [job.n_served for job in jobs] == [1000, 0, 0, 0]


@pytest.mark.parametrize("budget", [1, 10_000])
def test_an_empty_queue_has_nothing_to_take(budget: int):
    assert FairQueue().take(budget, "packed") == []


def test_jobs_that_are_over_are_forgotten():
    queue, _ = queued(rows(*[10] * 10_000))
    for _ in range(2000):
        queue.add(Job(model=MODEL), rows(10))
        queue.take(10, "packed")
        queue.take(10, "packed")
    assert len(queue._by_arrival) < 300
    assert len(queue._heap) < 300
