"""Measuring a variant on this processor: its logits beside PyTorch's, and its time beside fp32's.

Whether brain floats pay depends on the processor: AMX multiplies them fastest, AMD's AVX-512 doubles fp32's rate, and
Intel's AVX-512 without AMX halves it. Other processors also round at other places. So neither the export nor a table
can tell, and `rankrt prepare` measures it.
"""

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.backends import Backend
from rankrt.errors import DeviceError, ScoreError
from rankrt.loading.choose import Asked, place
from rankrt.loading.open import open_backend
from rankrt.loading.placement import Placement, Record
from rankrt.loading.prepared import Prepared, drift_limit, key_of
from rankrt.loading.tokenizer import open_tokenizer
from rankrt.options import LoadOptions
from rankrt.text.options import DEFAULT_LENGTH, Rules
from rankrt.text.pairs import Encoded, PairTokenizer

# Both models score so many tokens in turn, three times. With the comparison of scores this takes about a minute on one
# core with 568 M parameters.
_TIMED_TOKENS, _N_ROUNDS = 512, 3


def measure(placement: Placement, n_threads: int, *, prepare: bool = True) -> Record:
    """Score the manifest's examples in a variant and in fp32, compare, and record it. An older record is replaced.

    Raises ScoreError if the scores are wrong or depend on the rows beside them, DeviceError if the artifact has no
    examples or no fp32, and what opening the variants raises.
    """
    artifact, variant, options = placement.artifact, placement.variant, LoadOptions(prepare=prepare)
    if not artifact.manifest.examples:
        raise DeviceError(
            f"{artifact.folder} has no examples to verify {variant.name} with; export it again without --no-verify"
        )
    try:
        exact = place(artifact, Asked(device=placement.device, precision="fp32"), placement.host)
    except DeviceError as error:
        raise DeviceError(
            f"{variant.name} is measured beside fp32, which {artifact.folder} does not have here; export it again with"
            f" --precision fp32 {variant.precision}"
        ) from error
    encoded = _examples(placement)
    with (
        closing(open_backend(placement, options, n_threads)) as backend,
        closing(open_backend(exact, options, n_threads)) as exact_backend,
    ):
        logits = backend.logits(encoded).last
        difference = _checked(placement, logits)
        _check_alone(placement, backend, encoded, logits)
        timed = _first(encoded)
        times = [[_seconds(of, timed) for of in (backend, exact_backend)] for _ in range(_N_ROUNDS)]
    ours, of_fp32 = np.min(times, axis=0)
    prepared, key = Prepared(), key_of(placement)
    record = Record(
        key=key,
        max_length=None,
        engines=(),
        n_examples=len(logits),
        max_difference=difference,
        limit=drift_limit(variant),
        relative_time=float(ours / of_fp32),
    )
    with prepared.cache.filling(key):
        prepared.write(record)
    return record


def _examples(placement: Placement) -> Encoded:
    """Return the rows of the examples, cut as they were for the manifest."""
    manifest = placement.artifact.manifest
    tokenizer = PairTokenizer(open_tokenizer(placement.artifact, prepare=False), manifest.template)
    rules = Rules(max_length=min(DEFAULT_LENGTH, manifest.max_length), truncation="longest_first")
    return tokenizer.encode([(example.query, example.passage) for example in manifest.examples], rules)


def _checked(placement: Placement, logits: Float32Array) -> float:
    """Return the largest difference from PyTorch's logits. Raises ScoreError if it is above the limit, or for NaN."""
    variant, examples = placement.variant, placement.artifact.manifest.examples
    difference = float(np.abs(logits - np.array([example.logit for example in examples], np.float32)).max())
    if not difference <= (limit := drift_limit(variant)):
        raise ScoreError(
            f"{variant.name} differs from PyTorch by up to {difference:.2g} on this processor (limit {limit:.2g});"
            " it was not recorded. Use precision='fp32'"
        )
    return difference


def _check_alone(placement: Placement, backend: Backend, encoded: Encoded, logits: Float32Array) -> None:
    """Raise ScoreError if a row alone has another logit than beside others, in any bit."""
    alone = np.array([backend.run(row, is_wide=True).last[0] for row in _rows(encoded)], np.float32)
    if not np.array_equal(alone, logits):
        raise ScoreError(
            f"scores in {placement.variant.name} depend on the rows beside them on this processor, by up to"
            f" {np.abs(alone - logits).max():.2g}; it was not recorded. Use precision='fp32'"
        )


def _rows(encoded: Encoded) -> Iterator[Encoded]:
    for row in range(encoded.n_rows):
        yield Encoded.of_rows([encoded.row(row)], [int(encoded.passage_starts[row])])


def _first(encoded: Encoded) -> Encoded:
    """Return the first rows, as many as the tokens to be timed, and one at least."""
    n_rows = max(1, int(np.searchsorted(np.cumsum(encoded.lengths), _TIMED_TOKENS, side="right")))
    return Encoded.of_rows([encoded.row(row) for row in range(n_rows)], encoded.passage_starts[:n_rows].tolist())


def _seconds(backend: Backend, encoded: Encoded) -> float:
    start = time.perf_counter()
    backend.logits(encoded)
    return time.perf_counter() - start
