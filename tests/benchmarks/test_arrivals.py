"""The open loop keeps its schedule, whatever the server does, and users' waiting is counted from when they came."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.arrivals import capacity_per_s, offer, poisson_arrivals


class Skipping(selectors.SelectSelector):
    """Does not wait: it adds the wait to the time. So a busy host changes nothing."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0
        return super().select(0)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    selector = Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(coroutine)


def test_arrivals_are_those_of_a_poisson_process():
    times = np.array(poisson_arrivals(rate_per_s=1000, duration_s=20))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)  # 4 standard deviations
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # what tells exponential gaps from regular ones
    assert times.max() <= 20


def test_a_slow_server_does_not_slow_the_arrivals_down():
    server = asyncio.Lock()

    async def send(i: int) -> bool:
        async with server:  # one at a time: far less than what is offered
            await asyncio.sleep(0.02)
        return True

    due = [i / 200 for i in range(100)]
    replies = run(offer(send, due))
    assert [reply.sent_s for reply in replies] == pytest.approx(due)
    # 100 answers take 2 s. The last request came after 0.495 s and waited 1.505 s; a closed loop would say 0.02 s.
    assert replies[-1].latency_s == pytest.approx(1.505)


def test_failures_are_reported_and_do_not_end_the_rest():
    async def send(i: int) -> bool:
        return i != 1

    assert [reply.is_good for reply in run(offer(send, [0.0, 0.01, 0.02]))] == [True, False, True]


def test_capacity_is_what_waiting_clients_get():
    async def send(i: int) -> bool:
        await asyncio.sleep(0.02)
        return True

    assert run(capacity_per_s(send, duration_s=0.4, n_clients=4)) == pytest.approx(200)
