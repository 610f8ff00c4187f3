"""The benchmark of the server: arrivals are what it says, work is done once and paid for by whoever did it."""

import itertools
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

overhead = pytest.importorskip(
    "benchmarks.studies.server_overhead", reason="needs the source tree and the export package"
)


class FakeServer:
    """Has used a second more whenever it is asked."""

    def __init__(self) -> None:
        self._seconds = itertools.count()

    def cpu_s(self) -> dict[str, float]:
        return {"server": next(self._seconds), "workers": 0.0}


def test_one_of_twenty_requests_is_large_and_they_come_at_the_rate_that_was_asked_for():
    arrivals = overhead._arrivals(gap=0.01, seconds=100)
    times, is_large = np.array(arrivals).T
    assert arrivals == overhead._arrivals(gap=0.01, seconds=100)
    assert np.all(np.diff(times) > 0)
    assert len(times) == pytest.approx(10_000, rel=0.05), "100 is the standard deviation"
    assert is_large.mean() == pytest.approx(0.05, abs=0.01)


def test_all_callers_share_the_requests():
    done: Counter[int] = Counter()

    def call(caller: int) -> int:
        time.sleep(0.001)
        done[caller] += 1
        return 7

    work = overhead._work(call, n_callers=3, n_requests=30, server=FakeServer())
    assert sum(done.values()) == work.n_requests == 30
    assert len(done) == 3
    assert work.n_tokens == 210
    assert work.cpu_s["server"] == 1
    assert work.cpu_us_per_token("server", "workers") == pytest.approx(1e6 / 210)


def test_one_lucky_round_does_not_decide_how_the_library_is_called():
    def work(seconds: float) -> Any:
        return overhead.Work(n_requests=1, n_tokens=100, seconds=seconds, cpu_s={})

    rounds = [{"alone": work(alone), "together": work(10)} for alone in (1, 11, 12)]
    assert overhead.faster_way(rounds) == "together"
    assert overhead.faster_way(rounds[:1]) == "alone"
