"""Calls of an event loop: it goes on meanwhile, a cancelled call stops computing, and many share a model."""

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from rankrt import ClosedError, InputError, Reranker, Rules
from rankrt.artifact.manifest import Artifact
from rankrt.backends import Logits
from rankrt.backends.lanes import Lanes
from rankrt.backends.planner import Capacity, plan
from rankrt.llm.exits import Keep
from rankrt.text.pairs import Encoded
from tests.support import FakeBackend, model_of

DOCUMENTS = ["one two", "three", "two three four", "zero"]


class SlowBackend(FakeBackend):
    """A row a run; each takes a while, and is noted when it begins."""

    def __init__(self, *, n_narrow: int = 1, seconds: float = 0.05) -> None:
        super().__init__(Capacity(layout="packed", n_threads=max(1, n_narrow), n_narrow=n_narrow))
        self.seconds = seconds
        self.n_begun = 0
        self.n_at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._lanes = Lanes(n_narrow)

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        with self._lock:
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            rows = [np.array([row]) for row in range(encoded.n_rows)]
            planned = plan(np.full(len(rows), 10_000), self.capacity)  # longer than any run's budget
            self._lanes.run(planned, self._compute, self._compute)
        finally:
            with self._lock:
                self.n_at_once -= 1
        return Logits(values=encoded.lengths.astype(np.float32)[None])

    def _compute(self, rows: np.ndarray) -> None:
        with self._lock:
            self.n_begun += len(rows)
        time.sleep(self.seconds)


@pytest.fixture(params=[0, 1, 2], ids=["wide", "narrow", "side by side"])
def backend(request: pytest.FixtureRequest) -> SlowBackend:
    return SlowBackend(n_narrow=request.param)


@pytest.fixture
def slow(artifact: Artifact, backend: SlowBackend) -> Iterator[Reranker]:
    with Reranker(model_of(artifact, backend), Rules(max_length=64)) as reranker:
        yield reranker


def test_the_answers_are_those_of_the_calls_that_block(reranker: Reranker):
    pairs = [("one", document) for document in DOCUMENTS]

    async def main() -> None:
        assert await reranker.arank("one", DOCUMENTS, top_n=3) == reranker.rank("one", DOCUMENTS, top_n=3)
        assert await reranker.arank("one", iter(DOCUMENTS), normalize=True) == reranker.rank(
            "one", DOCUMENTS, normalize=True
        )
        assert (await reranker.ascore(pairs)).tobytes() == reranker.score(pairs).tobytes()
        assert (await reranker.with_rules(max_length=16).ascore(pairs)).tobytes() == reranker.score(pairs).tobytes()

    asyncio.run(main())


@pytest.mark.parametrize(("name", "awaited"), [("rank", "arank"), ("score", "ascore")])
def test_the_options_are_those_of_the_calls_that_block(name: str, awaited: str):
    call = getattr(Reranker, awaited)
    assert inspect.iscoroutinefunction(call)
    assert inspect.signature(call) == inspect.signature(getattr(Reranker, name))
    assert call.__qualname__ == f"Reranker.{awaited}"
    assert call.__doc__.startswith(f"Await `{name}`")


def test_the_loop_goes_on_while_a_call_computes(slow: Reranker):
    async def main() -> list[float]:
        call, ticks = asyncio.create_task(slow.arank("one", ["two"] * 6)), [time.monotonic()]
        while not call.done():
            await asyncio.sleep(0.005)
            ticks.append(time.monotonic())
        return ticks

    ticks = asyncio.run(main())
    assert ticks[-1] - ticks[0] >= 0.15, "three runs of two lanes at least"
    # A blocked loop would tick twice. On a busy machine a tick may come late, but not all of them.
    assert len(ticks) > 10


def test_a_cancelled_call_computes_no_further_than_its_present_run(slow: Reranker, backend: SlowBackend):
    async def main() -> None:
        call = asyncio.create_task(slow.arank("one", ["two"] * 400))
        while not backend.n_begun:
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        begun = backend.n_begun
        while backend.n_at_once:
            await asyncio.sleep(0.005)
        assert backend.n_begun <= begun + 2, "what began while the request to stop was on its way"

    asyncio.run(main())
    assert slow.rank("one", ["two"]).hits, "other calls are not concerned"


def test_a_call_that_is_cancelled_before_its_turn_never_runs(slow: Reranker, backend: SlowBackend):
    async def main() -> None:
        running = [asyncio.create_task(slow.arank("one", ["two"] * 4)) for _ in range(2)]
        while backend.n_at_once < 2:
            await asyncio.sleep(0.005)
        waiting = asyncio.create_task(slow.arank("one", ["two"] * 100))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(*running)

    asyncio.run(main())
    assert backend.n_begun == 8


def test_a_timeout_ends_a_call(slow: Reranker, backend: SlowBackend):
    async def main() -> None:
        call = asyncio.create_task(slow.ascore([("one", "two")] * 400))
        while not backend.n_begun:
            await asyncio.sleep(0.005)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await call

    asyncio.run(main())
    while backend.n_at_once:
        time.sleep(0.005)
    assert 0 < backend.n_begun < 100


def test_many_callers_share_a_model_two_at_a_time(slow: Reranker, backend: SlowBackend):
    backend.seconds = 0.001

    async def main() -> list[int]:
        rankings = await asyncio.gather(*(slow.arank("one", ["two"] * (1 + i % 5)) for i in range(100)))
        return [len(ranking) for ranking in rankings]

    assert asyncio.run(main()) == [1 + i % 5 for i in range(100)]
    assert backend.most_at_once <= 2


def test_errors_arrive_where_the_call_is_awaited(reranker: Reranker):
    async def main() -> None:
        with pytest.raises(InputError, match="the query is empty"):
            await reranker.arank(" ", DOCUMENTS)
        with pytest.raises(InputError, match="document 1 is int, not str"):
            await reranker.arank("one", ["two", 3])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="top"):
            await reranker.arank("one", DOCUMENTS, top=3)  # type: ignore[call-arg]
        found = await asyncio.gather(
            reranker.arank("one", DOCUMENTS), reranker.arank("", DOCUMENTS), return_exceptions=True
        )
        assert [type(answer).__name__ for answer in found] == ["Ranking", "InputError"]

    asyncio.run(main())


def test_two_loops_may_use_one_reranker_at_once(slow: Reranker, backend: SlowBackend):
    lengths: list[list[int]] = [[], []]

    def work(own: list[int]) -> None:
        async def main() -> None:
            own.extend(map(len, await asyncio.gather(*(slow.arank("one", ["two"] * n) for n in (1, 2, 3)))))

        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(own,)) for own in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(lengths[0])
    assert lengths == [[1, 2, 3, 1, 2, 3], [1, 2, 3]]
    assert backend.most_at_once <= 2


def test_closing_lets_calls_that_run_end_and_refuses_later_ones(slow: Reranker, backend: SlowBackend):
    async def main() -> None:
        running = [asyncio.create_task(slow.arank("one", ["two"] * 4)) for _ in range(2)]
        while backend.n_at_once < 2:
            await asyncio.sleep(0.005)
        waiting = asyncio.create_task(slow.arank("one", ["two"]))
        await asyncio.sleep(0.01)
        slow.close()
        with pytest.raises(ClosedError):
            await slow.arank("one", ["two"])
        with pytest.raises(ClosedError):
            await waiting
        assert [len(ranking) for ranking in await asyncio.gather(*running)] == [4, 4]

    asyncio.run(main())
    assert backend.is_closed
    slow.close()


def test_a_closed_model_keeps_no_threads(artifact: Artifact):
    before = threading.enumerate()
    reranker = Reranker.load(artifact.folder)
    asyncio.run(reranker.arank("one", DOCUMENTS))
    started = [t for t in threading.enumerate() if t not in before and t.name.startswith("rankrt call")]
    assert started
    reranker.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_progress_is_reported_from_the_call_s_thread(reranker: Reranker):
    told: list[tuple[int, str]] = []

    async def main() -> None:
        await reranker.arank(
            "one", DOCUMENTS, on_progress=lambda n: told.append((n, threading.current_thread().name.split("_")[0]))
        )

    asyncio.run(main())
    assert told == [(4, "rankrt call")]
