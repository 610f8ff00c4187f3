"""The scheduler: known rows, identical rows, rows that fail, lanes, room."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from rankrt import ScoreError
from rankrt.artifact.manifest import Layout
from rankrt.backends.planner import GPU_RUN_TOKENS, LONGEST_NARROW_ROW, RUN_TOKENS, Capacity
from rankrt.server.scheduling.queue import Job
from rankrt.server.scheduling.scheduler import MOST_RUN_TOKENS, Finished, QueueFull, Scheduler, Stopping, TooLate
from rankrt.server.scheduling.score_cache import ENTRY_BYTES, ScoreCache
from rankrt.server.workers.local import Run, RunFailed, WorkerLost
from rankrt.text.pairs import Encoded
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


DECODER = model(capacity=Capacity(layout="causal", n_threads=1, n_narrow=1))


def rows_after(n_prefix: int, *lengths: int, first_id: int = 5) -> Encoded:
    """Rows of these lengths that begin with the same tokens."""
    made = rows_of(*lengths, first_id=first_id)
    for row in range(made.n_rows):
        made.row(row)[:n_prefix] = np.arange(n_prefix) + first_id * 1_000_000
    return replace(made, passage_starts=np.full(made.n_rows, n_prefix))


def test_the_beginning_that_rows_share_counts_once_a_request(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    finished: list[Finished] = []
    scheduler = scheduled(worker)
    scheduler._on_finished = finished.append
    waiting = submit(scheduler, rows_after(10, 15, 20, 25), DECODER)
    scheduler.submit(waiting.job, rows_after(10, 30), [0])
    assert waiting.job.n_tokens == 15 + 10 + 15 + 20
    worker.allowed.release(100)
    assert waiting.logits() == [15, 20, 25, 30]
    assert waiting.job.n_cached == 3 * 10
    assert waiting.job.n_done == sum(run.n_tokens for run in finished) == 60


def test_a_beginning_counts_for_the_first_row_that_is_not_known(scheduled):
    scheduler = scheduled(FakeWorker(), cache_bytes=10 * ENTRY_BYTES)
    submit(scheduler, rows_after(10, 15), DECODER).logits()
    waiting = submit(scheduler, rows_after(10, 15, 20), DECODER)
    assert waiting.logits() == [15, 20]
    assert waiting.job.n_cached == 15


def test_rows_run_up_to_the_layer_of_their_model(scheduled):
    worker = FakeWorker()
    submit(scheduled(worker), rows_of(7), replace(DECODER, exits=(8,))).logits()
    assert [run.exits for run in worker.runs] == [(8,)]


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


def admit(scheduler: Scheduler, *expected: int, seconds: float = 60, **fields) -> Job:
    job = Job(model=MODEL, deadline=time.monotonic() + seconds, **fields)
    scheduler.admit(job, np.array(expected))
    return job


def paced(scheduler: Scheduler, seconds_per_token: float) -> None:
    """Let the scheduler think that it has measured so."""
    for _ in range(20):
        scheduler._paces[MODEL.key, ()].note_run(100, 100 * seconds_per_token, at=time.monotonic())
    scheduler._paces[MODEL.key, ()].seconds_per_token = seconds_per_token


def test_a_request_counts_whole_before_its_texts_are_read(scheduled):
    scheduler = scheduled(FakeWorker(), max_queue_tokens=1000)
    admit(scheduler, *[100] * 8)
    with pytest.raises(QueueFull, match=r"queue full: 800 tokens .* 300 \(limit 1,000\)") as refused:
        admit(scheduler, 100, 100, 100)
    assert refused.value.retry_after_s == pytest.approx(1)
    admit(scheduler, 100, 100)


def test_short_rows_count_for_the_memory_that_they_take(scheduled):
    scheduler = scheduled(FakeWorker(), max_queue_tokens=1000)
    with pytest.raises(QueueFull, match="about 1,280 tokens"):
        admit(scheduler, *[5] * 40)


def test_a_request_that_is_larger_than_the_queue_is_told_to_be_smaller(scheduled):
    with pytest.raises(QueueFull, match="send fewer documents at once") as refused:
        admit(scheduled(FakeWorker(), max_queue_tokens=1000), *[100] * 11)
    assert refused.value.retry_after_s is None, "it would never fit"


def test_rows_wait_for_room_when_texts_had_more_tokens_than_was_thought(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker, max_queue_tokens=100)
    job = admit(scheduler, 10, 10)
    scheduler.submit(job, rows_of(90, first_id=1), [0])
    wait_until(lambda: worker.n_running == 1)
    scheduler.submit(job, rows_of(90, first_id=2), [0])
    third = threading.Thread(target=scheduler.submit, args=(job, rows_of(20, first_id=3), [0]))
    third.start()
    time.sleep(0.1)
    assert scheduler.queue.n_tokens == 90
    worker.allowed.release(100)
    third.join(timeout=10)
    wait_until(lambda: job.n_left == 0)
    assert job.logits == [90, 90, 20]


def test_what_cannot_be_done_in_time_is_refused_with_a_time_to_come_back(scheduled):
    scheduler = scheduled(FakeWorker())
    paced(scheduler, 0.01)
    admit(scheduler, *[100] * 40)
    assert scheduler.backlog_s() == pytest.approx(40)
    with pytest.raises(QueueFull, match=r"busy for 40.0 s; this request takes about 41.0 s and has 60.0 s") as refused:
        admit(scheduler, *[100] * 41)
    assert refused.value.retry_after_s == pytest.approx(36, abs=0.1), "45 s of its 60 are planned with"
    admit(scheduler, *[100] * 5)


def test_a_request_that_left_makes_room(scheduled):
    scheduler = scheduled(FakeWorker())
    paced(scheduler, 0.01)
    leaving = admit(scheduler, *[100] * 50)
    scheduler.cancel(leaving)
    assert scheduler.backlog_s() == 0
    admit(scheduler, *[100] * 50)


def test_an_idle_server_takes_a_request_that_seems_too_long_and_finds_out(scheduled):
    """A pace that was measured while the host was busy would otherwise refuse it for ever."""
    scheduler = scheduled(FakeWorker())
    paced(scheduler, 1.0)
    job = admit(scheduler, 70, 80)
    scheduler._paces[MODEL.key, ()]._n_current = 0  # nothing was measured for a while
    scheduler.submit(job, rows_of(70, 80), range(2))
    wait_until(lambda: job.n_left == 0)
    assert job.error is None


def test_a_request_is_given_up_as_soon_as_it_is_known_to_be_late(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker)
    late = admit(scheduler, *[100] * 20, seconds=10)
    scheduler.submit(late, rows_of(*[100] * 20), range(20))
    wait_until(lambda: worker.n_running == 1)
    partial = admit(scheduler, *[100] * 20, seconds=10, is_partial=True)
    scheduler.submit(partial, rows_of(*[100] * 20, first_id=7), range(20))
    paced(scheduler, 0.1)
    n_before = len(worker.runs)
    worker.allowed.release(1000)
    wait_until(lambda: late.error is not None and partial.n_left == 0)
    assert isinstance(late.error, TooLate)
    assert partial.error is None
    n_rows = sum(len(run.rows) for run in worker.runs[n_before:])
    assert n_rows < 2 * 20, "the rest of the late one was not scored"


def test_a_short_request_goes_before_a_long_one(scheduled):
    worker = FakeWorker(allowed=threading.Semaphore(0))
    scheduler = scheduled(worker)
    paced(scheduler, 1e-4)
    long, short = admit(scheduler, *[100] * 50), admit(scheduler, 100)
    scheduler.submit(long, rows_of(*[100] * 50), range(50))
    scheduler.submit(short, rows_of(100, first_id=3), [0])
    worker.allowed.release(2)
    wait_until(lambda: short.n_left == 0)
    assert long.n_left > 40
    worker.allowed.release(1000)
    wait_until(lambda: long.n_left == 0)


def test_the_pace_is_of_all_lanes_together(scheduled):
    def slowly(run: Run) -> np.ndarray:
        time.sleep(0.01)
        return np.array([len(row) for row in run.rows], np.float32)

    capacity = Capacity(layout="packed", n_threads=4, n_narrow=4)
    scheduler, served = scheduled(FakeWorker(n_lanes=4, answer=slowly)), model(capacity=capacity)
    started = time.monotonic()
    submit(scheduler, rows_of(*[250] * 80), served).logits()
    seconds = time.monotonic() - started
    assert scheduler._paces[served.key, ()].seconds_per_token == pytest.approx(seconds / (80 * 250), rel=0.5)


def test_texts_with_more_tokens_than_was_thought_are_learned_from(scheduled):
    scheduler = scheduled(FakeWorker(allowed=threading.Semaphore(0)))
    job = admit(scheduler, *[10] * 10)
    assert job.n_ahead == 100
    scheduler.submit(job, rows_of(30, 30), range(2))
    assert job.n_ahead == 300, "the rest of its texts will be alike"
    assert admit(scheduler, 100).n_ahead == pytest.approx(120), "others may be"


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
