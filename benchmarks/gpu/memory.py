"""What a model holds on the GPU: its weights, and the arena after runs of many shapes, by the way that it grows."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np

from benchmarks.gpu.lines import Line
from benchmarks.gpu.rows import encoded_of
from benchmarks.gpu.subject import CUDA, Subject, placed
from rankrt.backends.cuda import cuda_settings
from rankrt.backends.gpu import ForRows, GpuBackend, memory_of, open_on
from rankrt.errors import DeviceError
from rankrt.host.gpus import used_bytes

_GROWTH = {"doubling, as rankrt has it": {}, "by what is asked for": {"arena_extend_strategy": "kSameAsRequested"}}
_N_CALLS = 60
_MOST_ROWS, _LONGEST_ROWS = 200, (512, 512, 1024, 8192)


def memory(subject: Subject) -> Iterator[Line]:
    """Yield what is held after loading, and after calls of many shapes."""
    placement = placed(subject.artifact, "fp16")
    graph = placement.artifact.path(placement.variant.graph)
    for name, growth in _GROWTH.items():
        before = _used()
        session = open_on(CUDA, graph, "ORT_ENABLE_EXTENDED", cuda_settings(CUDA) | growth)
        with closing(GpuBackend([ForRows(None, session)], placement.variant.layout, memory_of(CUDA))) as backend:
            del session
            loaded, chance = _used(), np.random.default_rng(0)
            for _ in range(_N_CALLS if subject.size.n_tokens > _LONGEST_ROWS[-1] else 2):
                drawn = chance.lognormal(5, 0.7, int(chance.integers(1, _MOST_ROWS)))
                lengths = np.clip(drawn, 8, chance.choice(_LONGEST_ROWS)).astype(int)
                backend.logits(encoded_of(lengths.tolist(), subject.size.n_ids))
            yield Line(
                name=name, figures={"loaded_gb": (loaded - before) / 1e9, "after_runs_gb": (_used() - before) / 1e9}
            )


def _used() -> int:
    """Return the bytes that all processes hold on the GPU. Raises DeviceError where the driver does not say."""
    if (found := used_bytes(CUDA.index)) is None:
        raise DeviceError("the driver does not say how much of the GPU's memory is used")
    return found
