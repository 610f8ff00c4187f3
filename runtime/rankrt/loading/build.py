"""What `rankrt build` does for a GPU ahead of time: engines where there are any, and scores compared with PyTorch's.

Every session takes the manifest's examples, alone and repeated until a run is full, and a row of its greatest length.
What answers no number, or drifts too far, is not recorded; then nothing uses it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import TARGETS
from rankrt.backends.cuda import open_cuda
from rankrt.backends.gpu import GpuBackend
from rankrt.backends.planner import divide
from rankrt.backends.tensorrt_engines import buckets, open_tensorrt
from rankrt.errors import InputError, ScoreError
from rankrt.host.device import Device
from rankrt.loading.builds import Build, Builds, BuiltFor, built_for, drift_limit
from rankrt.loading.open import open_tokenizer
from rankrt.text.options import Rules
from rankrt.text.pairs import Encoded, Pair, PairTokenizer

# How long the rows were that the manifest's logits are of.
_REFERENCE_LENGTH = 512
# Rows enough to fill the largest run with short ones.
_MANY_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Rows for one session, and which of them are the examples as they were verified; the others are only run."""

    encoded: Encoded
    is_example: BoolArray


def build(
    artifact: Artifact,
    variant: Variant,
    device: Device,
    *,
    max_length: int | None = None,
    progress: Callable[[str], None] = lambda done: None,
) -> Build:
    """Build and verify a variant for a device of this host, and record it. A record of before is replaced.

    `max_length` is the most tokens of a row that engines take, by default 512 or the model's limit. `progress` is told
    what is done: see `steps`. Raises DeviceError, ArtifactError, InputError, CacheError, and
    ScoreError if the scores are wrong.
    """
    max_length = _checked_length(artifact, max_length)
    key, builds = built_for(artifact, variant, device), Builds()
    artifact.check_hashes(variant.files)
    with builds.cache.filling(key.key):
        builds.timings.mkdir(exist_ok=True)
        backend = _opened(artifact, variant, device, max_length, key, builds, progress)
        try:
            difference, n_examples = verify(backend, artifact, variant)
        finally:
            backend.close()
        progress("scores")
        found = Build(
            built_for=key,
            max_length=max_length if TARGETS[device.target].builds_engines else None,
            engines=builds.engine_names(key),
            n_examples=n_examples,
            max_difference=difference,
            limit=drift_limit(variant),
        )
        builds.write(found)
    return found


def steps(artifact: Artifact, device: Device, max_length: int | None = None) -> int:
    """Return how often `build` calls its `progress`."""
    return 1 + (len(buckets(_checked_length(artifact, max_length))) if TARGETS[device.target].builds_engines else 1)


def verify(backend: GpuBackend, artifact: Artifact, variant: Variant) -> tuple[float, int]:
    """Return the largest difference of the examples' logits from PyTorch's, and how many examples there are.

    Raises ScoreError if it is above the limit, or if anything is no number.
    """
    expected = np.array([example.logit for example in artifact.manifest.examples], np.float32)
    differences, was_compared = [0.0], np.zeros(len(expected), bool)
    for number, trial in enumerate(_trials(backend, artifact)):
        for rows in _runs(backend, trial):
            logits = backend.run_on(number, trial.encoded, rows)
            _check_finite(logits, variant)
            compared = trial.is_example[rows]
            differences += np.abs(logits[compared] - expected[rows[compared]]).tolist()
        was_compared |= trial.is_example[:-1]
    if (found := max(differences)) > (limit := drift_limit(variant)):
        raise ScoreError(
            f"{variant.name} differs from PyTorch by up to {found:.2g} on this GPU (limit {limit:.2g}); not recorded"
        )
    return found, int(was_compared.sum())


def _opened(
    artifact: Artifact,
    variant: Variant,
    device: Device,
    max_length: int,
    key: BuiltFor,
    builds: Builds,
    progress: Callable[[str], None],
) -> GpuBackend:
    graph = artifact.path(variant.graph)
    if not TARGETS[device.target].builds_engines:
        backend = open_cuda(graph, variant.layout, device)
        progress("session")
        return backend
    return open_tensorrt(
        graph,
        variant.layout,
        device,
        max_length=max_length,
        engines=builds.engines(key),
        timings=builds.timings,
        n_weight_bytes=artifact.n_weight_bytes(variant),
        progress=lambda bucket: progress(bucket.name),
    )


def _trials(backend: GpuBackend, artifact: Artifact) -> Iterator[Trial]:
    """Yield the rows for each session: the examples, the last row as long as the session allows."""
    manifest = artifact.manifest
    tokenizer = PairTokenizer(open_tokenizer(artifact, prepare=False), manifest.template)
    pairs: list[Pair] = [(example.query, example.passage) for example in manifest.examples]
    reference = min(_REFERENCE_LENGTH, manifest.max_length)
    whole = tokenizer.encode(pairs, Rules(max_length=reference, truncation="longest_first")).lengths
    for found in backend.sessions:
        longest = found.longest or reference
        text = " ".join(passage for _, passage in pairs) or "text"
        # A character is a token at most, so that the last row is cut wherever it ends.
        filler = ("text", f"{text} " * (1 + longest // len(text)) * 8)
        encoded = tokenizer.encode([*pairs, filler], Rules(max_length=longest, truncation="longest_first"))
        yield Trial(encoded=encoded, is_example=np.append(encoded.lengths[:-1] == whole, False))


def _runs(backend: GpuBackend, trial: Trial) -> Iterator[Int64Array]:
    """Yield runs: all rows as they would be planned, and a full run."""
    budget, layout = backend.capacity.run_tokens, backend.capacity.layout
    lengths = trial.encoded.lengths
    yield from divide(lengths, budget, layout)
    many = np.resize(np.arange(len(lengths)), _MANY_ROWS)
    yield many[divide(lengths[many], budget, layout)[0]]


def _check_finite(logits: Float32Array, variant: Variant) -> None:
    if not np.isfinite(logits).all():
        raise ScoreError(f"{variant.name} answers what is no number on this GPU; it is not recorded")


def _checked_length(artifact: Artifact, max_length: int | None) -> int:
    limit = artifact.manifest.max_length
    if max_length is None:
        return min(_REFERENCE_LENGTH, limit)
    if not 1 <= max_length <= limit:
        raise InputError(f"max_length={max_length}, expected 1 to {limit}, which this model takes")
    return max_length
