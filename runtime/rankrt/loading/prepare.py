"""Making a variant ready for this host, once: what `rankrt prepare` does, and loading on a CPU.

For a processor ONNX Runtime packs the weights into a file. Every session would do it otherwise: 1 s and 1.2 GB of
private memory for a model of 568 M parameters, in every process. For a GPU engines are built where there are any, and
scores are compared with PyTorch's. Every session takes the manifest's examples, alone and repeated until a run is full,
and a row of its greatest length. A variant that answers NaN, or drifts too far, is not recorded; then nothing uses it.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrt.arrays import BoolArray, Int64Array
from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import PRECISIONS, TARGETS
from rankrt.backends.cuda import open_cuda
from rankrt.backends.gpu import GpuBackend
from rankrt.backends.planner import divide
from rankrt.backends.session import Form, open_session, session_options
from rankrt.backends.tensorrt_engines import buckets, open_tensorrt
from rankrt.errors import ArtifactError, CacheError, InputError, ScoreError
from rankrt.files.cache import Use
from rankrt.host.device import Device
from rankrt.loading.placement import Placement, Record
from rankrt.loading.prepared import GRAPH, WEIGHTS, Prepared, drift_limit, graphs_in, key_of
from rankrt.loading.tokenizer import open_tokenizer
from rankrt.text.options import DEFAULT_LENGTH, Rules
from rankrt.text.pairs import Encoded, Pair, PairTokenizer

# Rows enough to fill the largest run with short ones.
_MANY_ROWS = 4096
# Smaller tensors stay in the graph file, which is read at once.
_MIN_EXTERNAL_BYTES = 1024

_logger = logging.getLogger("rankrt")


def prepare_for_cpu(placement: Placement, prepared: Prepared, hashes: FileHashes) -> tuple[list[Path], Use]:
    """Return the prepared graphs of a variant; make them, once per host, if there are no sound ones yet.

    Making them takes about 10 s per GB. Raises ArtifactError if a file of the artifact is not what was exported, and
    CacheError if the cache cannot be written or the disk is too small.
    """
    artifact, variant = placement.artifact, placement.variant

    def write(folder: Path) -> None:
        _logger.info("preparing %s for this processor, once (%s)", artifact.manifest.name, prepared.folder)
        artifact.check_hashes(variant.files, hashes.sha256)
        _check_space(folder, placement, prepared)
        for number, name in enumerate(variant.graphs):
            _pack(artifact.path(name), folder, number, placement.form)

    use = prepared.cache.make(key_of(placement), write)
    return graphs_in(use, variant), use


def prepare_for_gpu(
    placement: Placement, *, max_length: int | None = None, progress: Callable[[str], None] = lambda done: None
) -> Record:
    """Build a variant's engines where there are any, compare scores, and record it. An older record is replaced.

    `max_length` is the most tokens of a row that engines take, by default 512 or the limit of the model.
    `progress` is told what is done: see `n_steps`. Raises ArtifactError, InputError, CacheError, and ScoreError if the
    scores are wrong.
    """
    artifact, variant = placement.artifact, placement.variant
    max_length = _checked_length(artifact, max_length)
    key, prepared = key_of(placement), Prepared()
    artifact.check_hashes(variant.files)
    with prepared.cache.filling(key):
        prepared.timings.mkdir(exist_ok=True)
        backend = _opened(placement, max_length, prepared, progress)
        try:
            difference, n_examples = verify(backend, artifact, variant)
        finally:
            backend.close()
        progress("scores")
        found = Record(
            key=key,
            max_length=max_length if TARGETS[variant.target].builds_engines else None,
            engines=prepared.engine_names(key),
            n_examples=n_examples,
            max_difference=difference,
            limit=drift_limit(variant),
        )
        prepared.write(found)
    return found


def n_steps(artifact: Artifact, device: Device, max_length: int | None = None) -> int:
    """Return how often `prepare_for_gpu` calls its `progress`."""
    n_engines = len(buckets(_checked_length(artifact, max_length))) if TARGETS[device.target].builds_engines else 1
    return n_engines + 1


def verify(backend: GpuBackend, artifact: Artifact, variant: Variant) -> tuple[float, int]:
    """Return the largest difference of the examples' logits from PyTorch's, and how many examples there are.

    Raises ScoreError if it is above the limit, or for NaN or infinity.
    """
    expected = np.array([example.logit for example in artifact.manifest.examples], np.float32)
    differences, was_compared = [0.0], np.zeros(len(expected), bool)
    for number, trial in enumerate(_trials(backend, artifact)):
        for rows in _runs(backend, trial):
            logits = backend.run_on(number, trial.encoded, rows)
            if not np.isfinite(logits).all():
                raise ScoreError(f"{variant.name} returned NaN or infinity on this GPU; it was not recorded")
            compared = trial.is_example[rows]
            differences += np.abs(logits[compared] - expected[rows[compared]]).tolist()
        was_compared |= trial.is_example[:-1]
    if (found := max(differences)) > (limit := drift_limit(variant)):
        raise ScoreError(
            f"{variant.name} differs from PyTorch by up to {found:.2g} on this GPU (limit {limit:.2g}); not recorded"
        )
    return found, int(was_compared.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Rows for one session, and which of them are the examples as they were verified; the others are only run."""

    encoded: Encoded
    is_example: BoolArray


def _check_space(folder: Path, placement: Placement, prepared: Prepared) -> None:
    """Raise CacheError if the disk, or the limit of the cache, is too small for a prepared model."""
    files, variant = placement.artifact.manifest.files, placement.variant
    n_bytes = sum(files[name].n_bytes for name in variant.files)
    needed = int(n_bytes * PRECISIONS[variant.precision].prepared_growth)
    free, limit = shutil.disk_usage(folder).free, prepared.cache.limit
    takes = f"the prepared model takes {needed / 1e9:.1f} GB"
    if free < needed:
        raise CacheError(f"{folder.parent} has {free / 1e9:.1f} GB free, {takes}")
    if limit is not None and limit < needed:
        raise CacheError(f"RANKRT_CACHE_MAX is {limit / 1e9:.1f} GB, {takes}")


def _pack(graph: Path, folder: Path, number: int, form: Form) -> None:
    """Let ONNX Runtime write a graph as it has optimised it, with the weights packed."""
    options = session_options(1, form)
    options.optimized_model_filepath = str(folder / GRAPH.format(number or ""))
    settings = {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": WEIGHTS.format(number or ""),
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_MIN_EXTERNAL_BYTES),
    }
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    try:
        open_session(graph, options)
    except ArtifactError as error:  # a graph that cannot be loaded is refused when it is opened as it is
        raise CacheError(f"ONNX Runtime could not write a prepared model: {error.__cause__ or error}") from error
    if not Path(options.optimized_model_filepath).exists():
        raise CacheError(f"ONNX Runtime wrote no prepared model for {graph}")


def _opened(placement: Placement, max_length: int, prepared: Prepared, progress: Callable[[str], None]) -> GpuBackend:
    artifact, variant, device = placement.artifact, placement.variant, placement.device
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
        engines=prepared.engines(key_of(placement)),
        timings=prepared.timings,
        n_weight_bytes=artifact.n_weight_bytes(variant),
        progress=lambda bucket: progress(bucket.name),
    )


def _trials(backend: GpuBackend, artifact: Artifact) -> Iterator[_Trial]:
    """Yield the rows for each session: the examples, the last row as long as the session allows."""
    manifest = artifact.manifest
    tokenizer = PairTokenizer(open_tokenizer(artifact, prepare=False), manifest.template)
    pairs: list[Pair] = [(example.query, example.passage) for example in manifest.examples]
    # The manifest's logits are of rows of this length.
    reference = min(DEFAULT_LENGTH, manifest.max_length)
    whole = tokenizer.encode(pairs, Rules(max_length=reference, truncation="longest_first")).lengths
    for found in backend.sessions:
        longest = found.longest or reference
        text = " ".join(passage for _, passage in pairs) or "text"
        # A character is a token at most, so that the last row is cut wherever it ends.
        filler = ("text", f"{text} " * (1 + longest // len(text)) * 8)
        encoded = tokenizer.encode([*pairs, filler], Rules(max_length=longest, truncation="longest_first"))
        yield _Trial(encoded=encoded, is_example=np.append(encoded.lengths[:-1] == whole, False))


def _runs(backend: GpuBackend, trial: _Trial) -> Iterator[Int64Array]:
    """Yield runs: all rows as they would be planned, and a full run."""
    budget, layout = backend.capacity.run_tokens, backend.capacity.layout
    lengths = trial.encoded.lengths
    yield from divide(lengths, budget, layout)
    many = np.resize(np.arange(len(lengths)), _MANY_ROWS)
    yield many[divide(lengths[many], budget, layout)[0]]


def _checked_length(artifact: Artifact, max_length: int | None) -> int:
    manifest = artifact.manifest
    if max_length is None:
        return min(DEFAULT_LENGTH, manifest.max_length)
    if not 1 <= max_length <= manifest.max_length:
        raise InputError(f"max_length={max_length}, expected 1 to {manifest.max_length}, which this model takes")
    return max_length
