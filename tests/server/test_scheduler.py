"""The scheduler: known rows, identical rows, rows that fail, lanes, room."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from rankrt import ScoreError
from rankrt.artifact import Layout
from rankrt.planner import GPU_RUN_TOKENS, LONGEST_NARROW_ROW, RUN_TOKENS, Capacity
from rankrt.server.cache import ENTRY_BYTES, ScoreCache
from rankrt.server.queue import Job
from rankrt.server.scheduler import MOST_RUN_TOKENS, Finished, QueueFull, Scheduler, Stopping
from rankrt.server.workers import Run, RunFailed, WorkerLost
from tests.server.support import FakeWorker, Waiting, model, rows_of

MODEL = model()


@pytest.fixture
def opened() -> Iterator[list[tuple[Scheduler, FakeWorker]]]:
    made: list[tuple[Scheduler, FakeWorker]] = []
    yield made
    for scheduler, worker in made:
        worker.allowed.release(1000)  # a test that failed may have left it waiting
        scheduler.close()


@pytest.fixture
def scheduled(opened: list[tuple[Scheduler, FakeWorker]]):
    def make(worker: FakeWorker, cache_bytes: int = 0, max_queue_tokens: int = 10**9) -> Scheduler:
        scheduler = Scheduler([worker], cache=ScoreCache(cache_bytes), max_queue_tokens=max_queue_tokens)
        opened.append((scheduler, worker))
        return scheduler

    return make


def submit(scheduler: Scheduler, rows, served=MODEL, **fields) -> Waiting:
    waiting = Waiting(served, **fields)
    scheduler.submit(waiting.job, rows, range(rows.n_rows))
    return waiting


def wait_until(is_true) -> None:
    limit = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_logits_come_in_the_order_of_the_rows(scheduled):
    assert submit(scheduled(FakeWorker()), rows_of(7, 300, 20, 20)).logits() == [7, 300, 20, 20]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_request_is_told_when_all_is_done_and_a_stream_of_every_run(scheduled, is_streamed: bool):
    worker, told = FakeWorker(), []
    job = Job(model=MODEL, is_streamed=is_streamed, notify=lambda: told.append(job.n_left))
    scheduled(worker).submit(job, rows_of(*[200] * 8), range(8))
    wait_until(lambda: told and told[-1] == 0)
    assert len(told) == (len(worker.runs) if is_streamed else 1)


def test_a_quick_model_gets_longer_runs(scheduled):
    worker = FakeWorker()
    scheduler = scheduled(worker)
    submit(scheduler, rows_of(*[100] * 50)).logits()
    lengths = [sum(map(len, run.rows)) for run in worker.runs]
    assert lengths[0] <= RUN_TOKENS
    assert RUN_TOKENS < max(lengths) <= MOST_RUN_TOKENS


def test_a_slow_model_gets_runs_of_what_the_planner_thinks_right(scheduled):
    worker = FakeWorker()
    plain = worker.answer

    def slowly(run: Run) -> np.ndarray:
        time.sleep(0.01)
        return plain(run)

    worker.answer = slowly
    submit(scheduled(worker), rows_of(*[100] * 30)).logits()
    assert max(sum(map(len, run.rows)) for run in worker.runs) <= RUN_TOKENS


def test_a_request_without_rows_to_run_is_told_at_once(scheduled):
    scheduler = scheduled(FakeWorker(), cache_bytes=10 * ENTRY_BYTES)
    submit(scheduler, rows_of(7)).logits()
    again = submit(scheduler, rows_of(7))
    assert again.logits() == [7]
    assert again.job.n_cached == 7


def test_known_scores_are_not_computed_again(scheduled):
    worker = FakeWorker()
    scheduler = scheduled(worker, cache_bytes=10 * ENTRY_BYTES)
    submit(scheduler, rows_of(7, 8)).logits()
    assert submit(scheduler, rows_of(7, 8, 9)).logits() == [7, 8, 9]
    assert sum(len(run.rows) for run in worker.runs) == 3
    assert (scheduler.cache.n_hits, scheduler.cache.n_misses) == (2, 3)


def test_the_cache_keeps_no_more_than_it_may_and_drops_the_oldest(scheduled):
    cache = ScoreCache(2 * ENTRY_BYTES)
    for name in (b"a", b"b", b"a", b"c"):
        cache.get(name)
        cache.put(name, 1.0)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (1.0, None, 1.0)
    assert cache.n_bytes == 2 * ENTRY_BYTES


def test_models_do_not_share_scores(scheduled):
    worker = FakeWorker()
    scheduler = scheduled(worker, cache_bytes=10 * ENTRY_BYTES)
    submit(scheduler, rows_of(7), model("0")).logits()
    submit(scheduler, rows_of(7), model("1")).logits()
    assert [run.key for run in worker.runs] == ["0", "1"]


def test_identical_rows_in_flight_are_scored_once(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker)
    requests = [submit(scheduler, rows_of(7, 8)) for _ in range(5)]
    worker.allowed.release(100)
    assert [request.logits() for request in requests] == [[7, 8]] * 5
    assert sum(len(run.rows) for run in worker.runs) == 2
    assert [request.job.n_cached for request in requests] == [0, 15, 15, 15, 15]


def test_identical_rows_of_one_request_are_scored_once(scheduled):
    worker, rows = FakeWorker(allowed=threading.Semaphore(0)), rows_of(7)
    doubled = rows_of(7, 7)
    doubled.ids[7:] = rows.ids
    scheduler = scheduled(worker)
    request = submit(scheduler, doubled)
    worker.allowed.release(100)
    assert request.logits() == [7, 7]
    assert sum(len(run.rows) for run in worker.runs) == 1
    assert scheduler.queue.n_tokens == 0


def test_who_leaves_takes_no_row_from_others(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker)
    blocker = submit(scheduler, rows_of(9, first_id=1))
    wait_until(lambda: worker.n_running == 1)
    leaving, staying = submit(scheduler, rows_of(7, 8)), submit(scheduler, rows_of(7))
    scheduler.cancel(leaving.job)
    assert scheduler.queue.n_tokens == 7
    worker.allowed.release(100)
    assert (blocker.logits(), staying.logits()) == ([9], [7])
    assert sum(len(run.rows) for run in worker.runs) == 2, "nobody waited for the row of 8"


def test_more_tokens_than_may_wait_are_refused_with_a_time_to_come_back(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker, max_queue_tokens=100)
    first = submit(scheduler, rows_of(50, first_id=1))
    wait_until(lambda: worker.n_running == 1)
    second = submit(scheduler, rows_of(90, first_id=2))
    with pytest.raises(QueueFull, match="90 tokens wait already, at most 100 may") as refused:
        submit(scheduler, rows_of(11, first_id=3))
    assert refused.value.retry_after_s >= 1
    worker.allowed.release(100)
    assert (first.logits(), second.logits()) == ([50], [90])


def test_a_request_that_was_admitted_is_not_refused_half_way(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker, max_queue_tokens=10)
    blocker = submit(scheduler, rows_of(9, first_id=1))
    wait_until(lambda: worker.n_running == 1)
    request = submit(scheduler, rows_of(20, 20, first_id=3))
    scheduler.submit(request.job, rows_of(30, first_id=2), [0])
    with pytest.raises(QueueFull):
        scheduler.check_room()
    worker.allowed.release(100)
    assert (blocker.logits(), request.logits()) == ([9], [20, 20, 30])
    scheduler.check_room()


def test_a_score_that_is_none_fails_the_requests_that_wait_for_it_and_no_other(scheduled):
    def answer(run: Run) -> np.ndarray:
        return np.array([np.nan if len(row) == 7 else len(row) for row in run.rows], np.float32)

    scheduler = scheduled(FakeWorker(answer=answer))
    bad, good = submit(scheduler, rows_of(7, 8)), submit(scheduler, rows_of(8, 9))
    assert good.logits() == [8, 9]
    with pytest.raises(ScoreError, match="nan"):
        bad.logits()


def test_a_row_that_breaks_the_engine_breaks_no_other(scheduled):
    def answer(run: Run) -> np.ndarray:
        if any(len(row) == 13 for row in run.rows):
            raise RunFailed("out of memory")
        return np.array([len(row) for row in run.rows], np.float32)

    scheduler = scheduled(FakeWorker(answer=answer))
    bad, good = submit(scheduler, rows_of(13, first_id=1)), submit(scheduler, rows_of(10, 11, 12))
    assert good.logits() == [10, 11, 12]
    with pytest.raises(RunFailed, match="out of memory"):
        bad.logits()
    assert scheduler.queue.n_tokens == 0


def test_rows_of_a_worker_that_is_lost_run_again_when_it_is_back(scheduled):
    worker = FakeWorker(n_lanes=8)
    plain = worker.answer

    def answer(run: Run) -> np.ndarray:
        raise worker.lose("it was killed")

    worker.answer = answer
    scheduler = scheduled(worker)
    request = submit(scheduler, rows_of(7, 8, 9))
    wait_until(lambda: worker.runs and worker.n_running == 0)
    time.sleep(0.05)
    assert len(worker.runs) <= 3, "while it is away its lanes try nothing, or rows would be given up"
    assert str(scheduler.outage) == "it was killed"
    worker.answer = plain
    worker.come_back()
    assert request.logits() == [7, 8, 9]
    assert scheduler.outage is None


def test_while_one_worker_is_away_another_one_does_everything(opened):
    away, here = FakeWorker(n_lanes=2), FakeWorker(n_lanes=2)
    away.lose("no memory")
    scheduler = Scheduler([away, here], cache=ScoreCache(0), max_queue_tokens=10**9)
    opened.append((scheduler, here))
    assert [submit(scheduler, rows_of(7, 300, first_id=i)).logits() for i in range(20)] == [[7, 300]] * 20
    assert away.runs == []
    assert scheduler.outage is None


def test_who_waits_for_a_model_that_no_worker_will_load_again_is_told_so(scheduled):
    worker = FakeWorker(outage=WorkerLost("it was killed"))
    scheduler = scheduled(worker)
    of_old, of_new = submit(scheduler, rows_of(7), model("old")), submit(scheduler, rows_of(7), model("new"))
    scheduler.abandon("old", WorkerLost("replaced"))
    worker.come_back()
    assert of_new.logits() == [7]
    with pytest.raises(WorkerLost, match="replaced"):
        of_old.logits()
    with pytest.raises(WorkerLost, match="replaced"):
        submit(scheduler, rows_of(7), model("old"))  # it was tokenized meanwhile
    assert scheduler.queue.n_tokens == 0


def test_logits_that_are_not_one_for_each_row_are_no_answer(scheduled):
    with pytest.raises(RunFailed, match="2 logits came for 1 rows"):
        submit(scheduled(FakeWorker(answer=lambda run: np.zeros(2, np.float32))), rows_of(7)).logits()


def test_a_lane_goes_on_after_an_error_that_nobody_expected(scheduled):
    worker = FakeWorker()
    scheduler, plain = scheduled(worker), worker.answer
    worker.answer = lambda run: np.array(1 // 0)
    with pytest.raises(RunFailed, match="ZeroDivisionError"):
        submit(scheduler, rows_of(7)).logits()
    worker.answer = plain
    assert submit(scheduler, rows_of(8)).logits() == [8]


def test_a_wide_run_has_the_worker_to_itself(scheduled):
    """Rows beyond the narrow limit run wide; the lanes run dry before and start after."""
    capacity = Capacity(layout="packed", n_threads=4, n_narrow=4)
    worker, served = FakeWorker(n_lanes=4), model(capacity=capacity)
    scheduler = scheduled(worker)
    running_with_wide: list[int] = []

    def answer(run: Run) -> np.ndarray:
        if run.is_wide:
            running_with_wide.append(worker.n_running)
        time.sleep(0.001)
        return np.array([len(row) for row in run.rows], np.float32)

    worker.answer = answer
    long = LONGEST_NARROW_ROW + 1
    requests = [submit(scheduler, rows_of(200, long, 200, first_id=i), served) for i in range(5)]
    assert [request.logits() for request in requests] == [[200, long, 200]] * 5
    assert len(running_with_wide) >= 5
    assert set(running_with_wide) == {0}, "nobody else ran beside one"


def test_without_narrow_lanes_every_run_is_wide(scheduled):
    worker, served = FakeWorker(n_lanes=2), model(capacity=Capacity(layout="stacked", n_threads=2, n_narrow=0))
    assert submit(scheduled(worker), rows_of(7, 7, 8), served).logits() == [7, 7, 8]
    assert all(run.is_wide for run in worker.runs)
    assert worker.most_running == 1


def test_who_waits_when_it_stops_is_told_so_at_once():
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = Scheduler([worker], cache=ScoreCache(0), max_queue_tokens=10**9)
    requests = [submit(scheduler, rows_of(300, first_id=i)) for i in range(3)]
    wait_until(lambda: worker.n_running == 1)
    scheduler.stop()
    for request in requests:
        with pytest.raises(Stopping):
            request.logits()
    with pytest.raises(Stopping):
        submit(scheduler, rows_of(7))
    worker.allowed.release(100)
    scheduler.close()
    assert len(worker.runs) == 1, "nothing is started any more"


def test_a_lane_goes_on_when_a_run_cannot_be_counted():
    def count(finished: Finished) -> None:
        raise ZeroDivisionError

    scheduler = Scheduler([FakeWorker()], cache=ScoreCache(0), max_queue_tokens=10**9, on_finished=count)
    assert [submit(scheduler, rows_of(7, first_id=i)).logits() for i in range(3)] == [[7]] * 3
    scheduler.close()


def test_many_threads_may_submit_and_leave(scheduled):
    worker = FakeWorker(n_lanes=4)
    scheduler = scheduled(worker, cache_bytes=50 * ENTRY_BYTES)

    def client(i: int) -> None:
        for j in range(50):
            lengths = [5 + (i + j + k) % 17 for k in range(6)]
            request = submit(scheduler, rows_of(*lengths, first_id=j % 3))
            if (i + j) % 5 == 0:
                scheduler.cancel(request.job)
            else:
                assert request.logits() == lengths

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    wait_until(lambda: scheduler.queue.n_tokens == 0)
    assert scheduler.queue.n_rows == 0


@pytest.mark.parametrize("layout", ["varlen", "padded"])
def test_a_gpu_has_large_runs_and_two_in_flight_however_many_lanes_its_worker_has(scheduled, layout: Layout):
    worker = FakeWorker(n_lanes=4, allowed=threading.Semaphore(0))
    scheduler = scheduled(worker)
    on_gpu = model("gpu", Capacity(layout=layout, n_threads=1, n_narrow=2))
    request = submit(scheduler, rows_of(*[512] * 100), on_gpu)
    wait_until(lambda: worker.n_running == 2)
    worker.allowed.release(1000)
    assert request.logits() == [512] * 100
    assert worker.most_running == 2
    assert sorted(len(run.rows) for run in worker.runs) == [4, *[GPU_RUN_TOKENS // 512] * 3]
    assert not any(run.is_wide for run in worker.runs)


def test_a_row_of_any_length_shares_the_gpu_with_others(scheduled):
    worker = FakeWorker(n_lanes=2)
    on_gpu = model("gpu", Capacity(layout="varlen", n_threads=1, n_narrow=2))
    assert submit(scheduled(worker), rows_of(8192, 8000), on_gpu).logits() == [8192, 8000]
    assert [len(run.rows) for run in worker.runs] == [2]
