"""Correctness of scores, for a trained model and a large random one. The reference is transformers in fp32."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.lines import PACKED, Line
from benchmarks.gpu.pytorch import HALF, Packed, model_of, packed, padded
from benchmarks.gpu.rows import rows_of
from benchmarks.gpu.subject import CUDA, TINY_CHECKPOINT, Subject, placed
from rankrt.arrays import Float32Array, Int32Array
from rankrt.artifact.precisions import Precision
from rankrt.cli.finding import Finding, checked
from rankrt.cli.gpu_doctor import examine_gpu, examine_variant
from rankrt.loading.open import open_gpu, open_pair_tokenizer, rules_for
from rankrt.loading.placement import Placement
from rankrt.loading.prepare import prepare_for_gpu
from rankrt.loading.prepared import drift_limit
from rankrt.text.pairs import Encoded
from rankrt_export.text.texts import sample

_PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")
# Rows are short and long. Some are on each side of 256, where fp32's attention takes another kernel. The longest row is
# first, because PyTorch's logits come in that order.
_LENGTHS = (500, 257, 256, 255, 100, 64, 17, 8)
_N_AGAIN = 3


def tiny(subject: Subject) -> Iterator[Line]:
    """Yield the doctor's findings, then the trained model's differences from transformers' logits on real text."""
    for finding in examine_gpu(CUDA):
        yield _found(finding, "")
    artifact = subject.tiny
    tokenizer = open_pair_tokenizer(placed(artifact, _PRECISIONS[0]), prepare=False)
    pairs = [(question.query, passage) for question in sample().questions for passage in question.passages]
    encoded = tokenizer.encode(pairs, rules_for(artifact, {}))
    rows = [encoded.row(i) for i in range(encoded.n_rows)]
    expected = _alone(model_of(TINY_CHECKPOINT, torch.float32), rows)
    for precision in _PRECISIONS:
        placement = placed(artifact, precision)
        yield _found(checked("prepare", partial(_prepared, placement)), precision)
        for finding in examine_variant(artifact, placement.variant, CUDA):
            yield _found(finding, precision)
        with closing(open_gpu(placement)) as backend:
            line = _compared(f"trained model, {precision}", backend.logits(encoded).last, expected)
        yield replace(line, figures={**line.figures, "limit": drift_limit(placement.variant)})


def parity(subject: Subject) -> Iterator[Line]:
    """Yield the differences of logits from those of transformers' model in fp32."""
    rows = rows_of(_LENGTHS, subject.size.n_ids)
    exact = model_of(subject.checkpoint, torch.float32)
    expected = _alone(exact, rows)
    yield Line(name="spread of the logits", figures={"logit": float(expected.std())})
    half = model_of(subject.checkpoint, HALF)
    yield _compared("transformers fp16, padded", padded(half, rows)(), expected)
    yield _compared(PACKED, packed(Packed(half), rows)(), expected)
    encoded = Encoded.of_rows(rows)
    for precision in _PRECISIONS:
        with closing(subject.backend(precision)) as backend:
            found = [backend.logits(encoded).last for _ in range(_N_AGAIN)]
            yield _compared(f"rankrt {precision}", found[0], expected)
            is_equal = all(np.array_equal(again, found[0]) for again in found)
            yield Line(name=f"rankrt {precision}, again", figures={"same_bits": "yes" if is_equal else "no"})


def _alone(model: Any, rows: Sequence[Int32Array]) -> Float32Array:
    """Return the logits of rows, computed one by one. There is no padding, and products keep all bits of fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    return np.concatenate([padded(model, [row])() for row in rows])


def _prepared(placement: Placement) -> str:
    """Prepare as `rankrt prepare` does: run a full batch, and a row of the greatest length."""
    prepare_for_gpu(placement)
    return "a full run and the longest row have finite scores"


def _found(finding: Finding, precision: str) -> Line:
    name = f"{finding.name}, {precision}" if precision else finding.name
    return Line(name=f"doctor: {name}", figures={"verdict": finding.verdict, "detail": finding.detail})


def _compared(name: str, logits: Float32Array, expected: Float32Array) -> Line:
    differences = np.abs(logits - expected)
    figures = {"max_difference": float(differences.max()), "mean_difference": float(differences.mean())}
    return Line(name=name, figures=figures)
