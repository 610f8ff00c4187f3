"""Twice as much as a server can do: it does all that it can, none of it in vain, and refuses the rest at once."""

import asyncio
import collections
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rankrt.server.limits import Limits  # noqa: E402
from tests.server.support import serving_with_service  # noqa: E402

N_LANES, TOKENS_A_SECOND = 2, 1500
WORDS = ["zero", "one", "two", "three", "four"]


class SlowWorker:
    """Runs a service's rows at a fixed pace by sleeping, so that a busy host takes nothing of its capacity."""

    def __init__(self, service: Any) -> None:
        (worker,) = service.workers
        self._service = service
        self._run, worker.run = worker.run, self.run
        self.seconds, self.n_tokens, self.last = 0.0, 0, 0.0

    def begin(self, address: str) -> float:
        """Let the service find out how slow it is now, and count from here on."""
        self._service.scheduler._paces.clear()  # what the warm-up measured was the model without the sleep
        for number in range(3):
            assert httpx.post(f"{address}/rerank", json=body(-1 - number, 20), timeout=30).status_code == 200
        self.seconds, self.n_tokens = 0.0, 0
        return time.monotonic()

    def run(self, lane: int, run: Any) -> np.ndarray:
        started, n_tokens = time.monotonic(), sum(map(len, run.rows))
        logits = np.asarray(self._run(lane, run))
        n_lanes = N_LANES if run.is_wide else 1
        time.sleep(max(0.0, started + N_LANES * n_tokens / n_lanes / TOKENS_A_SECOND - time.monotonic()))
        self.last = time.monotonic()
        self.seconds += n_lanes * (self.last - started)
        self.n_tokens += n_tokens
        return logits


def body(number: int, n_documents: int) -> dict[str, Any]:
    """Rows of twenty tokens, of which no two are equal."""
    digits = np.base_repr(abs(number * 1000 + 10**7), 5)
    texts = [f"{' '.join(WORDS[int(digit)] for digit in np.base_repr(i + 625, 5))} two" for i in range(n_documents)]
    return {"query": " ".join(WORDS[int(digit)] for digit in digits), "texts": texts}


async def offered(address: str, n_documents: int, rate: float, seconds: float) -> list[tuple[float, Any]]:
    """Send requests at a rate, whoever waits; return how long each took, and its answer."""
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=httpx.Limits(max_connections=500)) as client:

        async def one(number: int) -> tuple[float, Any]:
            started = time.monotonic()
            answer = await client.post("/rerank", json=body(number, n_documents))
            return time.monotonic() - started, answer

        tasks, started = [], time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(one(number)))
        return await asyncio.gather(*tasks)


@pytest.mark.parametrize("n_documents", [5, 20])
def test_at_twice_the_capacity_nearly_all_of_it_is_answered_in_time(tiny_folder: Path, n_documents: int):
    with serving_with_service(tiny_folder, limits=Limits(timeout_ms=3000)) as (address, service):
        worker = SlowWorker(service)
        rate = 2 * TOKENS_A_SECOND / (n_documents * 20)
        started = worker.begin(address)
        replies = asyncio.run(offered(address, n_documents, rate, 5.0))
        answered = sum(int(answer.headers["x-compute-tokens"]) for _, answer in replies if answer.status_code == 200)
        statuses = collections.Counter(answer.status_code for _, answer in replies)
        busy = worker.seconds / (N_LANES * (worker.last - started))
        goodput = busy * answered / worker.n_tokens
        print(f"goodput {goodput:.3f}: busy {busy:.3f}, answered {answered / worker.n_tokens:.3f}, {statuses}")
        # 0.97 to 0.98 on a quiet host; 0.93 with a load of 20 on two cores, as the clients then come too late.
        assert goodput >= 0.85
        assert set(statuses) <= {200, 429, 504}
        assert statuses[504] <= 0.05 * len(replies), "the pace of the host itself may change"
        refused = [(seconds, answer) for seconds, answer in replies if answer.status_code == 429]
        assert np.median([seconds for seconds, _ in refused]) < 0.2
        assert all(1 <= int(answer.headers["retry-after"]) <= 3 for _, answer in refused)


def test_a_burst_is_answered_as_far_as_there_is_time_and_refused_at_once_beyond(tiny_folder: Path):
    """200 requests at once ended in 180 x 504 with nearly all documents of each scored."""
    with serving_with_service(tiny_folder, limits=Limits(timeout_ms=3000)) as (address, service):
        worker = SlowWorker(service)
        worker.begin(address)
        replies = asyncio.run(offered(address, 20, 1e6, 50 / 1e6))
        statuses = collections.Counter(answer.status_code for _, answer in replies)
        answered = sum(int(answer.headers["x-compute-tokens"]) for _, answer in replies if answer.status_code == 200)
        print(statuses, answered / worker.n_tokens)
        assert statuses[200] >= 6, "2.25 s at 1,500 tokens a second are 8 requests of 400"
        assert statuses[429] >= 38
        assert answered >= 0.9 * worker.n_tokens


def test_short_requests_are_quick_beside_long_ones(tiny_folder: Path):
    async def both(address: str) -> tuple[list[tuple[float, Any]], list[tuple[float, Any]]]:
        return await asyncio.gather(offered(address, 50, 1.5, 4.0), offered(address, 2, 5, 4.0))

    with serving_with_service(tiny_folder, limits=Limits(timeout_ms=6000)) as (address, service):
        SlowWorker(service).begin(address)
        long, short = asyncio.run(both(address))
    seconds = [seconds for seconds, answer in short if answer.status_code == 200]
    print(np.percentile(seconds, [50, 90]), collections.Counter(answer.status_code for _, answer in long))
    assert len(seconds) >= 0.9 * len(short)
    assert np.median(seconds) < 0.8, "a run that goes on takes 0.34 s"
    assert sum(answer.status_code == 200 for _, answer in long) >= 3
