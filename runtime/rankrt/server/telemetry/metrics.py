"""The figures for Prometheus: counts and seconds. Labels are names of the operator, never of a client."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from rankrt.server.evaluator import Answer
from rankrt.server.limits import InFlight
from rankrt.server.scheduling.scheduler import Finished, Scheduler
from rankrt.server.workers.local import Worker
from rankrt.server.workers.process import ProcessWorker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_DOCUMENTS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 5000)


class Metrics:
    """The figures of one server. Threads may share it."""

    def __init__(
        self, scheduler: Callable[[], Scheduler], workers: Callable[[], Sequence[Worker]], in_flight: InFlight
    ):
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_State(scheduler, workers, in_flight))
        self._requests = Counter(
            "rankrt_requests", "requests answered", ["dialect", "model", "status"], registry=registry
        )
        self._errors = Counter("rankrt_errors", "requests refused or failed", ["dialect", "kind"], registry=registry)
        self._seconds = Histogram(
            "rankrt_request_seconds",
            "seconds of an answered request, by stage",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._documents = Histogram(
            "rankrt_request_documents", "documents of a request", buckets=_DOCUMENTS, registry=registry
        )
        self._tokens = Counter(
            "rankrt_tokens", "tokens of all rows, by the source of the score", ["source"], registry=registry
        )
        self._truncated = Counter(
            "rankrt_truncated", "documents and queries that were truncated", ["role"], registry=registry
        )
        self._run_tokens = Histogram(
            "rankrt_run_tokens", "tokens that ran together", buckets=_TOKENS, registry=registry
        )
        self._run_seconds = Histogram(
            "rankrt_run_seconds", "seconds of a run, by its kind", ["kind"], buckets=_SECONDS, registry=registry
        )

    def page(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, dialect: str, answer: Answer) -> None:
        """Count a request that was answered."""
        self._requests.labels(dialect, answer.model.name, "200").inc()
        timings = answer.timings
        for stage in ("tokenization", "queue", "inference", "total"):
            self._seconds.labels(stage).observe(getattr(timings, stage))
        self._documents.observe(len(answer.logits))
        self._tokens.labels("computed").inc(answer.n_tokens - answer.n_cached)
        self._tokens.labels("cached").inc(answer.n_cached)
        self._truncated.labels("document").inc(int(answer.truncated.sum()))
        self._truncated.labels("query").inc(int(answer.query_truncated.any()))

    def failed(self, dialect: str, kind: str, status: int) -> None:
        """Count a request that failed."""
        self._requests.labels(dialect, "", str(status)).inc()
        self._errors.labels(dialect, kind).inc()

    def ran(self, finished: Finished) -> None:
        """Count a run."""
        self._run_tokens.observe(finished.n_tokens)
        self._run_seconds.labels("wide" if finished.is_wide else "narrow").observe(finished.seconds)


class _State(Collector):
    """The figures that are read for each page."""

    def __init__(
        self, scheduler: Callable[[], Scheduler], workers: Callable[[], Sequence[Worker]], in_flight: InFlight
    ) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._in_flight = in_flight

    def collect(self) -> Iterable[Metric]:
        """Yield the current figures."""
        queue, cache = self._scheduler().queue, self._scheduler().cache
        yield GaugeMetricFamily("rankrt_queue_tokens", "tokens that wait to be scored", value=queue.n_tokens)
        yield GaugeMetricFamily("rankrt_queue_rows", "rows that wait to be scored", value=queue.n_rows)
        backlog = self._scheduler().backlog_s()
        yield GaugeMetricFamily("rankrt_queue_seconds", "seconds until all accepted work is done", value=backlog)
        yield GaugeMetricFamily("rankrt_requests_in_flight", "requests in flight", value=self._in_flight.n_requests)
        yield GaugeMetricFamily("rankrt_body_bytes_in_flight", "bytes of their bodies", value=self._in_flight.n_bytes)
        yield GaugeMetricFamily("rankrt_cache_bytes", "approximate bytes of the score cache", value=cache.n_bytes)
        yield CounterMetricFamily("rankrt_cache_hits", "rows whose score was in the cache", value=cache.n_hits)
        yield CounterMetricFamily("rankrt_cache_misses", "rows whose score was not in the cache", value=cache.n_misses)
        processes = [worker for worker in self._workers() if isinstance(worker, ProcessWorker)]
        n_ready = sum(worker.outage is None for worker in self._workers())
        yield GaugeMetricFamily("rankrt_workers_ready", "workers that can score now", value=n_ready)
        n_restarts = sum(worker.n_restarts for worker in processes)
        yield CounterMetricFamily("rankrt_worker_restarts", "restarts of workers that ended", value=n_restarts)
        memory = GaugeMetricFamily("rankrt_worker_resident_bytes", "memory of a worker", labels=["worker"])
        for i, worker in enumerate(processes):
            memory.add_metric([str(i)], resident_bytes(worker.pid))
        yield memory


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
