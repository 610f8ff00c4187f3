"""rankrt's speed for rows of many lengths, for a request's few rows, and for runs of other sizes than the planner's."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from benchmarks.gpu.lines import RANKRT, Line, latency, median_s, rate
from benchmarks.gpu.rows import REQUESTS, encoded_of, lengths_of
from benchmarks.gpu.subject import Subject
from rankrt.backends.gpu import GpuBackend
from rankrt.backends.in_flight import N_IN_FLIGHT
from rankrt.backends.planner import divide
from rankrt.text.pairs import Encoded

# fp32 is for checks and takes a few times as long, so it gets fewer tokens. So does the sweep, which has 20 cases.
_FP32_SHARE, _SWEEP_SHARE = 8, 2


def speed(subject: Subject) -> Iterator[Line]:
    """Yield tokens and rows a second for each mix of lengths, and the latency of requests."""
    size = subject.size
    with closing(subject.backend("fp16")) as backend:
        for mix in size.mixes:
            lengths = lengths_of(mix, size.n_tokens)
            encoded = encoded_of(lengths, size.n_ids)
            took = median_s(partial(backend.logits, encoded), size.seconds)
            yield rate(RANKRT, mix, lengths, took, size.shape)
        for n_rows, length in REQUESTS:
            encoded = encoded_of([length] * n_rows, size.n_ids)
            yield latency(RANKRT, n_rows, length, median_s(partial(backend.logits, encoded), size.seconds / 3))
    with closing(subject.backend("fp32")) as backend:
        lengths = lengths_of(size.mixes[0], size.n_tokens // _FP32_SHARE)
        encoded = encoded_of(lengths, size.n_ids)
        took = median_s(partial(backend.logits, encoded), size.seconds)
        yield rate("rankrt fp32", size.mixes[0], lengths, took, size.shape)


def sweep(subject: Subject) -> Iterator[Line]:
    """Yield the speed by the tokens of a run and the runs in flight. The planner has a constant for each."""
    size = subject.size
    with closing(subject.backend("fp16")) as backend:
        for mix in size.mixes[:2]:
            lengths = lengths_of(mix, size.n_tokens // _SWEEP_SHARE)
            encoded = encoded_of(lengths, size.n_ids)
            for n_tokens in size.sweep:
                for n_in_flight in range(1, N_IN_FLIGHT + 1):
                    took = median_s(_in_runs(backend, encoded, n_tokens, n_in_flight), size.seconds / 2)
                    name = f"runs of {n_tokens} tokens, {n_in_flight} in flight"
                    yield rate(name, mix, lengths, took, size.shape)


def _in_runs(backend: GpuBackend, encoded: Encoded, n_tokens: int, n_in_flight: int) -> Callable[[], object]:
    """Return a call that scores rows in runs of at most `n_tokens` tokens, with `n_in_flight` runs at a time."""
    runs = divide(encoded.lengths, n_tokens, backend.capacity.layout)

    def call() -> None:
        with ThreadPoolExecutor(n_in_flight) as pool:
            list(pool.map(lambda rows: backend.run_on(0, encoded, rows), runs))

    return call
