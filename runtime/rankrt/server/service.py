"""Everything behind the routes, started, reloaded and stopped as one."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rankrt.backends.idle import Idle
from rankrt.errors import RankrtError
from rankrt.machine import usable_cores
from rankrt.resident import release_free_memory
from rankrt.server.cache import ScoreCache
from rankrt.server.engine import Engine
from rankrt.server.keys import ApiKeys
from rankrt.server.limits import InFlight, Limits
from rankrt.server.metrics import Metrics
from rankrt.server.models import LoadOptions, Models, Served
from rankrt.server.process import ProcessWorker
from rankrt.server.scheduler import Scheduler
from rankrt.server.tracing import NoTracer, Tracer
from rankrt.server.workers import LocalWorker, Worker

# One process serves its lanes well; more of them keep a worker's threads on one part of a large machine.
_CORES_A_WORKER = 16
# When no request has come for so long, the memory that bodies and texts have left is given back.
_IDLE_S = 1.0

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
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_failure` is called if the models cannot be loaded at the start; `error` says why."""
        self.settings = settings
        self.in_flight = InFlight(settings.limits)
        self.tracer = tracer or NoTracer()
        self.error: RankrtError | None = None
        self.idle = Idle(release_free_memory, _IDLE_S)
        self._on_failure = on_failure
        self._loading: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether the models are loaded and warm."""
        return self.models.is_ready

    def start(self) -> None:
        """Start workers, and load the models in the background."""
        # Requests take turns at the tokenizer; one that spread over all cores would make the others wait for it.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        settings = self.settings
        n_threads = settings.n_threads or usable_cores().n
        self.workers = _workers(settings.n_workers, n_threads)
        self.metrics = Metrics(lambda: self.scheduler, lambda: self.workers, self.in_flight)
        self.scheduler = Scheduler(
            self.workers,
            cache=ScoreCache(settings.cache_bytes),
            max_queue_tokens=settings.limits.max_queue_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            on_finished=self.metrics.ran,
        )
        self.models = Models(settings.models, settings.load, self.workers)
        self.engine = Engine(self.models, self.scheduler, settings.limits, max(2, n_threads))
        self._loading = asyncio.create_task(self._load_first())

    async def ready(self) -> None:
        """Wait until the models are loaded. Raises what kept them from it."""
        if self._loading is not None:
            await self._loading
        if self.error is not None:
            raise self.error

    async def reload(self) -> None:
        """Replace the models whose artifacts have changed; keep all of them if one cannot be loaded."""
        async with self._reloading:
            try:
                await self.models.load(self.engine.warm_up)
                _logger.info("reloaded")
            except RankrtError as error:
                _logger.error("the artifacts of before are kept: %s", error)

    async def close(self) -> None:
        """Stop; requests were answered before, or never will be."""
        if self._loading is not None:
            self._loading.cancel()
        self.idle.close()
        self.engine.close()
        await asyncio.to_thread(self.scheduler.close)
        for worker in self.workers:
            await asyncio.to_thread(worker.close)
        await asyncio.to_thread(self.tracer.close)

    async def _load_first(self) -> None:
        try:
            await self.models.load(self.engine.warm_up)
        except RankrtError as error:
            self.error = error
            self._on_failure()


def _workers(n_workers: int | None, n_threads: int) -> list[Worker]:
    if n_workers == 0:
        return [LocalWorker(n_threads)]
    n_workers = max(1, n_threads // _CORES_A_WORKER) if n_workers is None else n_workers
    return [ProcessWorker(max(1, n_threads // n_workers)) for _ in range(n_workers)]
