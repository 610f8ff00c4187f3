"""Narrow runs: the caller computes some itself, free threads help it, and an exception stops the rest."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rankrt.arrays import Int64Array
from rankrt.backends.lanes import Lanes
from rankrt.backends.planner import Plan


def runs(n: int) -> Plan:
    return Plan(narrow=tuple(np.array([i]) for i in range(n)))


def wide(rows: Int64Array) -> None:
    raise AssertionError("no run of these plans is wide")


def test_each_run_is_done_once_and_by_the_caller_as_well():
    lanes, done, both = Lanes(2), [], threading.Barrier(2, timeout=10)

    def narrow(rows: Int64Array) -> None:
        if rows[0] < 2:
            both.wait()  # two threads are here at once
        done.append((int(rows[0]), threading.current_thread()))

    lanes.run(runs(6), wide, narrow)
    lanes.close()
    assert sorted(row for row, _ in done) == [0, 1, 2, 3, 4, 5]
    assert threading.current_thread() in {thread for _, thread in done}


def test_a_call_does_not_wait_for_threads_that_others_keep_busy():
    lanes, started, may_end = Lanes(2), threading.Barrier(5, timeout=10), threading.Event()

    def slow(rows: Int64Array) -> None:
        started.wait()
        may_end.wait(10)

    with ThreadPoolExecutor(2) as callers:
        others = [callers.submit(lanes.run, runs(2), wide, slow) for _ in range(2)]
        started.wait()  # both callers are busy, and so are both threads of the pool
        done: list[int] = []
        lanes.run(runs(3), wide, lambda rows: done.append(int(rows[0])))
        assert done == [0, 1, 2]
        assert not any(other.done() for other in others)
        may_end.set()
    lanes.close()


@pytest.mark.parametrize("failing", ["caller", "helper"])
def test_the_first_exception_stops_what_has_not_begun(failing: str):
    lanes, begun, caller = Lanes(2), [], threading.current_thread()
    both = threading.Barrier(2, timeout=10)

    def narrow(rows: Int64Array) -> None:
        begun.append(int(rows[0]))
        if int(rows[0]) < 2:
            both.wait()
            if (threading.current_thread() is caller) == (failing == "caller"):
                raise ValueError(f"run {rows[0]}")
            threading.Event().wait(0.2)  # until the other thread has failed

    with pytest.raises(ValueError, match=r"run [01]"):
        lanes.run(runs(50), wide, narrow)
    lanes.close()
    assert sorted(begun) == [0, 1]
