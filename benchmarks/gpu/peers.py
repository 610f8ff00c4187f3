"""How fast PyTorch scores the same rows. Both transformers' own model and one without padding, eager and compiled."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu.lines import PACKED, PADDED, Line, latency, median_s, rate
from benchmarks.gpu.pytorch import HALF, Packed, model_of, packed, padded
from benchmarks.gpu.rows import REQUESTS, lengths_of, rows_of
from benchmarks.gpu.subject import Subject
from rankrt.arrays import Int32Array

# Longer rows than 512 tokens are rankrt's stage alone: a padded matrix of one row says nothing new.
_N_MIXES = 3


def peers(subject: Subject) -> Iterator[Line]:
    """Yield the speed of both on each mix, and the latency of requests."""
    half, size = model_of(subject.checkpoint, HALF), subject.size
    for mix, lengths, rows in _mixes(subject):
        for name, call in _both(half, Packed(half), rows).items():
            yield rate(name, mix, lengths, median_s(call, size.seconds), size.shape)
    for n_rows, length in REQUESTS:
        for name, call in _both(half, Packed(half), rows_of([length] * n_rows, size.n_ids)).items():
            yield latency(name, n_rows, length, median_s(call, size.seconds / 3))


def compiled(subject: Subject) -> Iterator[Line]:
    """Yield the speed of both with torch.compile, for shapes that change. Yield the time of the first call, too."""
    half = model_of(subject.checkpoint, HALF)
    in_sequence, in_matrices = Packed(half, is_compiled=True), torch.compile(half, dynamic=True)
    for mix, lengths, rows in _mixes(subject):
        for name, call in _both(in_matrices, in_sequence, rows).items():
            began = time.perf_counter()
            call()
            yield Line(name=f"first call of {name}, compiled", figures={"rows": mix, "s": time.perf_counter() - began})
            took = median_s(call, subject.size.seconds)
            yield rate(f"{name}, compiled", mix, lengths, took, subject.size.shape)


def _both(in_matrices: Any, in_sequence: Packed, rows: Sequence[Int32Array]) -> dict[str, Callable[[], Any]]:
    return {PACKED: packed(in_sequence, rows), PADDED: padded(in_matrices, rows)}


def _mixes(subject: Subject) -> Iterator[tuple[str, list[int], list[torch.Tensor]]]:
    size = subject.size
    for mix in size.mixes[:_N_MIXES]:
        lengths = lengths_of(mix, size.n_tokens)
        yield mix, lengths, rows_of(lengths, size.n_ids)
