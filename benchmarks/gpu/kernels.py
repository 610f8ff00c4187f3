"""Where the time of a full run goes, by parts and by kernels. PyTorch's profiler sees rankrt's and PyTorch's own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.lines import PACKED, RANKRT, Line
from benchmarks.gpu.machine import rates
from benchmarks.gpu.parts import at_best_ms, parts_of
from benchmarks.gpu.pytorch import DEVICE, HALF, RUN_TOKENS, Packed, model_of, packed, wait
from benchmarks.gpu.rows import rows_of
from benchmarks.gpu.subject import Subject
from rankrt.text.pairs import Encoded

_N_CALLS, _N_NAMED, _N_CHARS = 3, 12, 120
_ROW_TOKENS = 512


def kernels(subject: Subject) -> Iterator[Line]:
    """Yield the time of a run on the GPU, its parts, and its costliest kernels."""
    n_rows = max(1, min(RUN_TOKENS, subject.size.n_tokens) // _ROW_TOKENS)
    rows = rows_of([_ROW_TOKENS] * n_rows, subject.size.n_ids)
    yield from _profiled(PACKED, packed(Packed(model_of(subject.checkpoint, HALF)), rows), {})
    encoded = Encoded.of_rows(rows)
    at_best = at_best_ms(subject.size.shape, n_rows * _ROW_TOKENS, rates(subject, n_rows, _ROW_TOKENS))
    with closing(subject.backend("fp16")) as backend:
        yield from _profiled(RANKRT, lambda: backend.logits(encoded), at_best)


def _profiled(name: str, call: Callable[[], object], at_best: Mapping[str, float]) -> Iterator[Line]:
    is_gpu = DEVICE == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiled:
        for _ in range(_N_CALLS):
            call()
        wait()
    events = profiled.key_averages()
    all_calls_us = {event.key: event.device_time_total if is_gpu else event.self_cpu_time_total for event in events}
    took = {key: microseconds / 1e3 / _N_CALLS for key, microseconds in all_calls_us.items()}
    times = {event.key: event.count / _N_CALLS for event in events}
    total = sum(took.values())
    yield Line(name=name, figures={"ms": total, "kernels": sum(times.values())})
    yield from parts_of(name, took, at_best)
    for key in sorted(took, key=lambda key: -took[key])[:_N_NAMED]:
        figures = {"ms": took[key], "share": took[key] / total, "times": times[key]}
        yield Line(name=f"{name}: {key[:_N_CHARS]}", figures=figures)
