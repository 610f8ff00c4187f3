"""An open loop: requests with Poisson arrivals, even while earlier ones are unanswered.

A client that waits for each answer slows down with the server and hides the delay (coordinated omission). Here the
times of arrival are drawn in advance, and a latency counts from that time, not from the sending.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Sends request number i and returns whether the answer was good.
Send = Callable[[int], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The times when a request was due, sent and answered, in seconds from the start."""

    due_s: float
    sent_s: float
    done_s: float
    is_good: bool

    @property
    def latency_s(self) -> float:
        """The wait of a user."""
        return self.done_s - self.due_s


def poisson_arrivals(rate_per_s: float, duration_s: float, seed: int = 0) -> list[float]:
    """Draw the times of arrival within a duration, at least one."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate_per_s, size=max(1, int(2 * rate_per_s * duration_s) + 50))
    times = np.cumsum(gaps)
    return [float(t) for t in times[times <= duration_s]] or [0.0]


async def offer(send: Send, arrivals_s: Sequence[float]) -> list[Reply]:
    """Send a request at each of these times and wait for all answers."""
    clock = asyncio.get_running_loop().time
    started = clock()

    async def one(i: int, due_s: float) -> Reply:
        sent_s = clock() - started
        is_good = await send(i)
        return Reply(due_s=due_s, sent_s=sent_s, done_s=clock() - started, is_good=is_good)

    tasks = []
    for i, due_s in enumerate(arrivals_s):
        await asyncio.sleep(max(0.0, due_s - (clock() - started)))
        tasks.append(asyncio.create_task(one(i, due_s)))
    return await asyncio.gather(*tasks)


async def capacity_per_s(send: Send, duration_s: float, n_clients: int) -> float:
    """Return the answers a second if so many clients send again as soon as they have an answer."""
    clock = asyncio.get_running_loop().time
    started = clock()
    n_good = 0

    async def client(i: int) -> None:
        nonlocal n_good
        while clock() - started < duration_s:
            is_good = await send(i)  # on a line of its own: += would read n_good before it waits
            n_good += is_good

    await asyncio.gather(*(client(i) for i in range(n_clients)))
    return n_good / (clock() - started)
