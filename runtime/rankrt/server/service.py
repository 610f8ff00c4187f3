"""Everything that the routes use, started, reloaded and stopped as one."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rankrt.backends.idle import Idle
from rankrt.errors import RankrtError
from rankrt.host.cpu import usable_cores
from rankrt.host.memory import release_free_memory
from rankrt.server.background import Background
from rankrt.server.evaluator import Evaluator
from rankrt.server.keys import ApiKeys
from rankrt.server.limits import Body, InFlight, Limits
from rankrt.server.models import LoadOptions, Models, Served
from rankrt.server.scheduling.scheduler import Scheduler
from rankrt.server.scheduling.score_cache import ScoreCache
from rankrt.server.telemetry.metrics import Metrics
from rankrt.server.telemetry.tracing import NoTracer, Tracer
from rankrt.server.workers.local import ArtifactReplaced, LocalWorker, Worker
from rankrt.server.workers.process import ProcessWorker

# Whether requests can be answered now: models are loaded for the first time, no worker can score, or it is the end.
State: TypeAlias = Literal["ready", "loading", "unavailable", "stopping"]

# One process serves its lanes well; more of them keep a worker's threads on one part of a large machine.
_CORES_A_WORKER = 16
# When no request was in flight for so long, the memory that bodies and texts have left is given back.
_IDLE_S = 1.0

# What a refused job takes to become an answer.
_REFUSING_S = 0.2

_logger = logging.getLogger("rankrt.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve.

    n_workers         processes that score; 0 scores in this one, None is one for every 16 cores
    n_threads         of all of them together; None is the usable cores
    cache_bytes       of the score cache; 0 is none
    max_batch_tokens  tokens that run together at most; None is the planner's choice
    """

    models: Sequence[Served]
    load: LoadOptions = field(default_factory=LoadOptions)
    limits: Limits = field(default_factory=Limits)
    n_workers: int | None = None
    n_threads: int | None = None
    cache_bytes: int = 0
    max_batch_tokens: int | None = None
    keys: ApiKeys = field(default_factory=ApiKeys)
    cors_origins: Sequence[str] = ()


class Service:
    """A running server without its sockets. One event loop uses it."""

    def __init__(
        self,
        settings: Settings,
        *,
        tracer: Tracer | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_ready` is called when the models are loaded, `on_failure` if they cannot be; then `error` says why."""
        self.settings = settings
        self.in_flight = InFlight(settings.limits)
        self.tracer = tracer or NoTracer()
        self.error: RankrtError | None = None
        self.is_stopping = False
        self.idle = Idle(release_free_memory, _IDLE_S)
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._background = Background()
        self._reloading = asyncio.Lock()
        self._unanswered: set[asyncio.Task[Any]] = set()

    @property
    def state(self) -> State:
        """Whether requests can be answered now; `scheduler.outage` says why none can if it is "unavailable"."""
        if self.is_stopping:
            return "stopping"
        if not self.models.is_ready:
            return "loading"
        return "ready" if self.scheduler.outage is None else "unavailable"

    def start(self) -> None:
        """Make workers, and load the models in the background."""
        # Requests take turns at the tokenizer; one that spread over all cores would make the others wait for it.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        settings = self.settings
        n_threads = settings.n_threads or usable_cores().n
        self.workers = _workers(settings.n_workers, n_threads, settings.limits.longest_run_s)
        self.metrics = Metrics(lambda: self.scheduler, lambda: self.workers, self.in_flight)
        self.scheduler = Scheduler(
            self.workers,
            cache=ScoreCache(settings.cache_bytes),
            max_queue_tokens=settings.limits.max_queue_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            on_finished=self.metrics.ran,
        )
        self.models = Models(
            settings.models,
            settings.load,
            self.workers,
            fail=self.scheduler.fail,
            abandon=self.scheduler.abandon,
            forget=self.scheduler.forget,
        )
        self.evaluator = Evaluator(self.models, self.scheduler, settings.limits, max(2, n_threads))
        self._watch_workers()
        self._background.start(self._load_first(), self._fail)

    async def reload(self) -> None:
        """Read the keys again and replace the models that have changed; what cannot be read stays as it was."""
        for worker in self.workers:
            worker.hurry()
        try:
            self.settings.keys.read_again()
        except RankrtError as error:
            _logger.error("the keys of before are kept: %s", error)
        try:
            await self._load()
            _logger.info("reloaded")
        except Exception as error:
            _logger.error("the artifacts of before are kept: %s", _said(error), exc_info=_trace_of(error))

    def reload_soon(self) -> None:
        """Reload in the background."""
        self._background.start(self.reload())

    @contextlib.contextmanager
    def request(self) -> Iterator[Body]:
        """Account for a request while it is in flight, and for the memory that it leaves."""
        with self.idle.busy(), self.in_flight.request() as body:
            yield body

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Note that this task is to answer a request; at the end of the server it may be cancelled, to refuse it."""
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        self._unanswered.add(task)
        try:
            yield
        finally:
            self._unanswered.discard(task)

    async def refuse_rest(self) -> None:
        """Refuse what was not answered until now: what waits to be scored, then what is still sent."""
        if self._unanswered:
            _logger.warning("the server ends: %d requests are refused that were not answered", len(self._unanswered))
        self.scheduler.stop()
        await asyncio.sleep(_REFUSING_S)
        for task in self._unanswered:
            task.cancel()

    async def close(self) -> None:
        """Stop; requests were answered before, or never will be."""
        self.is_stopping = True
        self.idle.close()
        self.scheduler.stop()
        await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in self.workers))
        await asyncio.to_thread(self.scheduler.close)
        await asyncio.to_thread(self.evaluator.close)
        await self._background.close()  # what it waits for has ended with the workers
        await asyncio.to_thread(self.tracer.close)

    async def _load_first(self) -> None:
        await self._load()
        self._on_ready()

    async def _load(self) -> None:
        async with self._reloading:
            await self.models.load(self.evaluator.warm_up)

    def _fail(self, error: BaseException) -> None:
        """Note why the models could not be loaded at the start."""
        if (trace := _trace_of(error)) is not None:
            _logger.error("an error of the server while it loaded its models", exc_info=trace)
        self.error = error if isinstance(error, RankrtError) else RankrtError(f"nothing is served: {_said(error)}")
        self._on_failure()

    def _watch_workers(self) -> None:
        """Reload when a worker finds that its artifact was replaced: all of them take the new one together."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            is_replaced = any(isinstance(worker.outage, ArtifactReplaced) for worker in self.workers)
            if is_replaced and not self._reloading.locked() and not self.is_stopping:
                _logger.warning("an artifact was replaced while a worker was away; it is loaded now")
                self.reload_soon()

        def look_soon() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(look)

        for worker in self.workers:
            worker.watch(look_soon)


def _said(error: BaseException) -> str:
    """Return what went wrong, in a sentence also where only the kind of error says it."""
    return f"{error}" if isinstance(error, RankrtError) else f"{type(error).__name__}: {error}"


def _trace_of(error: BaseException) -> BaseException | None:
    """Return an error whose place matters: one that is neither explained by itself nor caused by the host."""
    return None if isinstance(error, RankrtError | OSError | MemoryError) else error


def _workers(n_workers: int | None, n_threads: int, longest_run_s: float) -> list[Worker]:
    if n_workers == 0:
        return [LocalWorker(n_threads)]
    n_workers = max(1, n_threads // _CORES_A_WORKER) if n_workers is None else n_workers
    n_threads = max(1, n_threads // n_workers)
    return [ProcessWorker(n_threads, longest_run_s=longest_run_s) for _ in range(n_workers)]
