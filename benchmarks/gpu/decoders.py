"""Decoders in matrices of a new shape each time. Compares rankrt's flash attention with cuDNN's."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from statistics import median

from benchmarks.gpu.lines import Line, median_s
from benchmarks.gpu.rows import encoded_of
from benchmarks.gpu.subject import CUDA, Subject, placed
from rankrt.backends.cuda import cuda_settings
from rankrt.backends.gpu import ForRows, GpuBackend, memory_of, open_on
from rankrt.errors import RankrtError
from rankrt.loading.placement import Placement

# ONNX Runtime has a bit for each kernel: flash (1), memory-efficient (2), cuDNN's (8) and the plain one (16).
_KERNELS: Mapping[str, dict[str, str]] = {
    "as rankrt has it": {},
    "with cuDNN's": {"sdpa_kernel": str(1 | 2 | 8 | 16)},
}
_N_ROWS, _LENGTHS = 16, range(200, 220)


def decoders(subject: Subject) -> Iterator[Line]:
    """Yield two times for each family and kernel: a run with a new shape, and the same run again."""
    for family, config in subject.size.decoders.items():
        placement = placed(subject.decoder(family), "fp16")
        for name, kernel in _KERNELS.items():
            what = f"{family}, {config['num_hidden_layers']} layers, attention {name}"
            try:
                yield Line(
                    name=what, figures=_timed(placement, kernel, int(config["vocab_size"]), subject.size.seconds / 3)
                )
            except RankrtError as error:  # the time of the other kernel is still of use
                yield Line(name=what, figures={"failed": str(error)})


def _timed(placement: Placement, kernel: dict[str, str], n_ids: int, seconds: float) -> dict[str, float]:
    graph = placement.artifact.path(placement.variant.graphs[-1])
    session = open_on(CUDA, graph, "ORT_ENABLE_EXTENDED", cuda_settings(CUDA) | kernel)
    with closing(GpuBackend([ForRows(None, session)], placement.variant.layout, memory_of(CUDA))) as backend:
        del session
        new: list[float] = []
        for length in _LENGTHS:
            encoded = encoded_of([length] * _N_ROWS, n_ids)
            began = time.perf_counter()
            backend.logits(encoded)
            new.append(time.perf_counter() - began)
        again = median_s(lambda: backend.logits(encoded), seconds)
    return {"new_shape_ms": 1e3 * median(new), "same_shape_ms": 1e3 * again}
