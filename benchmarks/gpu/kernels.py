"""Where the time goes: the kernels of a full run, rankrt's and PyTorch's, as PyTorch's profiler sees both."""

from collections.abc import Callable, Iterator
from contextlib import closing

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.lines import Line
from benchmarks.gpu.pytorch import DEVICE, HALF, RUN_TOKENS, Packed, model_of, packed, wait
from benchmarks.gpu.rows import rows_of
from benchmarks.gpu.subject import Subject
from rankrt.text.pairs import Encoded

_N_CALLS, _N_NAMED, _N_CHARS = 3, 12, 120
_ROW_TOKENS = 512


def kernels(subject: Subject) -> Iterator[Line]:
    """Yield the time of a run on the GPU, and its costliest kernels."""
    n_tokens = min(RUN_TOKENS, subject.size.n_tokens)
    rows = rows_of([_ROW_TOKENS] * max(1, n_tokens // _ROW_TOKENS), subject.size.n_ids)
    yield from _profiled("PyTorch fp16, packed", packed(Packed(model_of(subject.checkpoint, HALF)), rows))
    encoded = Encoded.of_rows(rows)
    with closing(subject.backend("fp16")) as backend:
        yield from _profiled("rankrt fp16", lambda: backend.logits(encoded))


def _profiled(name: str, call: Callable[[], object]) -> Iterator[Line]:
    is_gpu = DEVICE == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiled:
        for _ in range(_N_CALLS):
            call()
        wait()
    events = profiled.key_averages()
    took = {event.key: (event.device_time_total if is_gpu else event.self_cpu_time_total) / 1e3 for event in events}
    times = {event.key: event.count / _N_CALLS for event in events}
    total = sum(took.values())
    yield Line(name=name, figures={"ms": total / _N_CALLS, "kernels": sum(times.values())})
    for key in sorted(took, key=lambda key: -took[key])[:_N_NAMED]:
        figures = {"ms": took[key] / _N_CALLS, "share": took[key] / total, "times": times[key]}
        yield Line(name=f"{name}: {key[:_N_CHARS]}", figures=figures)
