"""The queue of rows: whose run next, and which run together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt.server.scheduling.queue import Job, Row, RowQueue
from tests.server.support import model

MODEL = model()


def rows(*lengths: int, of=MODEL) -> list[Row]:
    return [Row(model=of, ids=np.zeros(length, np.int32), passage_start=0, digest=b"") for length in lengths]


def queued(*jobs: list[Row]) -> tuple[RowQueue, list[Job]]:
    queue, made = RowQueue(), []
    for wanted in jobs:
        job = Job(model=MODEL)
        queue.insert(len(queue.jobs), job)
        queue.add(job, wanted)
        made.append(job)
    return queue, made


def taken(queue: RowQueue, budget: int, layout="packed") -> list[list[Row]]:
    runs = []
    while run := queue.take(budget, layout):
        runs.append(run)
    return runs


def test_a_run_has_no_more_tokens_than_the_budget_unless_its_first_row_has():
    queue, _ = queued(rows(50, 30, 30, 20, 200))
    assert [[len(row) for row in run] for run in taken(queue, 100)] == [[50, 30], [30, 20], [200]]


def test_jobs_run_in_their_order_and_one_that_was_put_first_is_next():
    many, few = rows(10, 10), rows(10)
    queue, _ = queued(many)
    first = Job(model=MODEL)
    queue.insert(0, first)
    queue.add(first, few)
    assert [row for run in taken(queue, 10) for row in run] == few + many


def test_a_job_whose_rows_are_still_to_come_keeps_no_other_waiting():
    queue, (early, _) = queued([], rows(10))
    assert len(queue.take(100, "packed")) == 1
    queue.add(early, rows(20))
    assert [len(row) for row in queue.take(100, "packed")] == [20]


def test_a_job_that_was_removed_is_not_found():
    queue, (first, second) = queued(rows(10), rows(20))
    queue.remove(first)
    queue.remove(first)
    assert queue.next_job() is second


def test_a_run_that_one_request_does_not_fill_is_filled_by_the_next():
    queue, _ = queued(rows(40), rows(40), rows(40))
    assert [len(run) for run in taken(queue, 100)] == [2, 1]


def test_what_a_job_leaves_of_a_run_is_shared_only_as_far_as_pays():
    queue, _ = queued(rows(100), rows(*[100] * 100))
    assert len(queue.take(1000, "packed", shared_budget=300)) == 3
    assert len(queue.take(1000, "packed", shared_budget=300)) == 10, "a job's own run may be longer"


def test_what_waits_in_the_next_job_is_counted_alone():
    queue, _ = queued(rows(70, 30), rows(*[100] * 100))
    assert (queue.n_tokens_of_next(500), queue.n_tokens_of_next(50)) == (100, 50)
    assert RowQueue().n_tokens_of_next(500) == 0


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


def alike(prefix: bytes, *rests: int, n_prefix: int = 50) -> list[Row]:
    """Rows of one job that begin alike; the first computes the beginning."""
    found = rows(*[n_prefix + rest for rest in rests])
    for i, row in enumerate(found):
        row.prefix, row.n_shared = prefix, n_prefix if i else 0
    return found


def test_a_run_of_rows_that_begin_alike_counts_their_beginning_once():
    queue, _ = queued(alike(b"a", 20, 20, 20, 20))
    assert (queue.n_tokens, queue.n_own) == (280, 130)
    assert [len(run) for run in taken(queue, 90)] == [2, 2]
    assert (queue.n_tokens, queue.n_own) == (0, 0)


def test_rows_that_begin_alike_share_a_run_whatever_their_requests():
    queue, _ = queued(alike(b"a", 20, 20), alike(b"a", 20))
    assert [len(run) for run in taken(queue, 1000)] == [3]


def test_a_request_shares_no_run_with_one_of_another_beginning():
    queue, _ = queued(alike(b"a", 20, 20), alike(b"b", 20), alike(b"c", 20, 20))
    assert [[row.prefix for row in run] for run in taken(queue, 1000)] == [[b"a"] * 2, [b"b"], [b"c"] * 2]


def test_single_documents_share_a_run_as_none_of_their_beginnings_is_wanted_again():
    queue, _ = queued(*[alike(name, 20) for name in (b"a", b"b", b"c")], alike(b"d", 20, 20))
    assert [[row.prefix for row in run] for run in taken(queue, 1000)] == [[b"a", b"b", b"c"], [b"d"] * 2]


def test_while_a_beginning_is_computed_the_next_lane_takes_another_request():
    first, second = alike(b"a", 20, 20, 20), alike(b"b", 20, 20)
    queue, _ = queued(first, second)
    begun = queue.take(70, "causal")
    assert begun == first[:1]
    assert queue.take(70, "causal") == second[:1]
    assert queue.take(20, "causal") == first[1:2], "all that wait are in progress, so a lane is better than none"
    queue.note_end(begun)
    assert queue.take(20, "causal") == first[2:]


def test_a_request_of_a_lower_priority_does_not_go_first_for_it():
    first, second = alike(b"a", 20, 20), alike(b"b", 20)
    queue, (_, later) = queued(first, second)
    later.priority = 1
    assert queue.take(70, "causal") == first[:1]
    assert queue.take(70, "causal") == first[1:]


@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=20), max_size=8), st.integers(1, 400))
def test_every_row_is_taken_once(jobs: list[list[int]], budget: int):
    wanted = [rows(*lengths) for lengths in jobs]
    queue, _ = queued(*wanted)
    found = [row for run in taken(queue, budget) for row in run]
    assert sorted(map(id, found)) == sorted(id(row) for job in wanted for row in job)
    assert (queue.n_tokens, queue.n_rows, queue.head()) == (0, 0, None)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_an_empty_queue_has_nothing_to_take(budget: int):
    assert RowQueue().take(budget, "packed") == []
