"""Finding a model, placing it on this host and opening it: one way for the library, the server and its workers.

An engine is imported when a variant needs it, and what prepares a model when it was not prepared: 10 ms of a start.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import TARGETS
from rankrt.artifact.source import Hub, find_artifact, local_folder
from rankrt.backends import Backend
from rankrt.backends.cpu_encoder import CpuEncoder
from rankrt.backends.session import Form
from rankrt.errors import ArtifactError, CacheError, DeviceError, InputError
from rankrt.files.cache import HostCache, Use
from rankrt.files.seals import SMALL_BYTES
from rankrt.host.cpu import Machine
from rankrt.host.device import Device
from rankrt.host.host import Host, this_host
from rankrt.loading.choose import Asked, place
from rankrt.loading.model import Model, Origin
from rankrt.loading.placement import Placement
from rankrt.loading.prepared import Prepared, find_cache, go_on_without, key_of, prepare_command
from rankrt.loading.tokenizer import open_tokenizer
from rankrt.options import LoadOptions
from rankrt.text.options import Rules, default_length
from rankrt.text.pairs import PairTokenizer

if TYPE_CHECKING:
    from rankrt.backends.gpu import GpuBackend

# Two files at a time keep a fast disk busy; more would take cores from ONNX Runtime, which is loading.
_HASHING_THREADS = 2
# More threads than cores are slower and still right; so many more are a slip of the keyboard.
_MOST_THREADS_PER_CPU = 4

_logger = logging.getLogger("rankrt")


def open_model(source: str | Path, options: LoadOptions, *, shares_prefixes: bool = True) -> Model:
    """Find a model, choose its variant, and load that beside the tokenizer; others are loaded when they are first used.

    Without `shares_prefixes` a decoder computes each row whole, for measurements. Raises ArtifactError, DeviceError or
    InputError.
    """
    if (folder := local_folder(source)) is not None:
        source = folder.absolute()  # so that it is found again from any working directory
    host, origin = this_host(), Origin(source=source, options=options)
    _check_threads(options.n_threads, host.machine)
    placement = find(origin.source, options, host)
    on_device = replace(options, device=str(placement.device))

    def load(chosen: Placement) -> Backend:
        n_threads = options.n_threads or host.machine.cores.n
        return open_backend(chosen, options, n_threads, shares_prefixes=shares_prefixes)

    # A small model's tokenizer takes as long as its weights: 45 ms each.
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, placement)
        tokenizer = open_pair_tokenizer(placement, prepare=options.prepare)
    return Model(
        placement,
        tokenizer,
        find=lambda precision: replace(
            _find(origin.source, replace(on_device, precision=precision), host), artifact=placement.artifact
        ),
        load=load,
        loaded=loading.result(),
        origin=origin,
    )


def find(source: str | Path, options: LoadOptions, host: Host) -> Placement:
    """Find an artifact and choose its variant for this host. Raises ArtifactError, DeviceError or InputError."""
    placement = _find(source, options, host)
    options.check_device(placement.device)
    asked, variant = options.instruction_set, placement.variant
    if asked is not None and asked != variant.key.asked_set:
        found = "any processor" if variant.instruction_set is None else f"{variant.instruction_set!r}"
        raise DeviceError(f"{variant.name} is for {found}; leave instruction_set={asked!r} out")
    return placement


def _find(source: str | Path, options: LoadOptions, host: Host) -> Placement:
    device = Device.parse(options.device)
    asked = Asked(device=device, precision=options.precision, instruction_set=options.instruction_set)
    hub = Hub(revision=options.revision, cache_dir=options.cache_dir)
    return find_artifact(source, lambda artifact: place(artifact, asked, host), hub)


def rules_for(artifact: Artifact, given: Mapping[str, Any]) -> Rules:
    """Return the rules that are given, as fields of `Rules`, with a max_length that fits the model if none is.

    Raises InputError for rules that no model could keep.
    """
    longest = default_length(artifact.manifest.template, artifact.manifest.max_length)
    return Rules(**{**given, "max_length": longest if given.get("max_length") is None else given["max_length"]})


def open_pair_tokenizer(placement: Placement, *, prepare: bool) -> PairTokenizer:
    """Open what makes rows of pairs; for a GPU on as many cores as there are."""
    artifact = placement.artifact
    n_cores = placement.host.machine.cores.n if placement.device.is_gpu else 1
    return PairTokenizer(open_tokenizer(artifact, prepare=prepare, n_cores=n_cores), artifact.manifest.template)


def open_backend(
    placement: Placement, options: LoadOptions, n_threads: int, *, shares_prefixes: bool = True
) -> Backend:
    """Load a variant where it was placed. Raises ArtifactError or DeviceError."""
    if placement.device.is_gpu:
        n_gb = options.gpu_memory_gb
        return open_gpu(placement, memory_bytes=None if n_gb is None else int(n_gb * 2**30))
    return _open_cpu(placement, n_threads, prepare=options.prepare, shares_prefixes=shares_prefixes)


def open_gpu(placement: Placement, *, memory_bytes: int | None = None) -> "GpuBackend":
    """Load a variant on a GPU; for TensorRT the engines that were prepared. Raises ArtifactError or DeviceError."""
    from rankrt.backends.cuda import open_cuda

    artifact, variant, device = placement.artifact, placement.variant, placement.device
    with _checked(artifact, variant, FileHashes(artifact.folder, find_cache())):
        if TARGETS[device.target].builds_engines:
            return _open_engines(placement)
        return open_cuda(
            artifact.path(variant.graph),
            variant.layout,
            device,
            n_weight_bytes=artifact.n_weight_bytes(variant),
            memory_bytes=memory_bytes,
        )


def open_kept(placement: Placement, n_threads: int) -> Backend | None:
    """Load a variant for the CPU from the host's cache alone, whatever has become of the artifact's folder.

    None if it is never prepared, or has no sound entry there.
    """
    cache = find_cache() if placement.can_be_prepared else None
    found = None if cache is None else Prepared(cache).graphs(placement)
    return None if found is None else _opened_prepared(placement, *found, n_threads)


def fingerprint(placement: Placement) -> str:
    """Return a digest of all that a variant's scores come from: its files, the tokenizer and the words around a pair.

    Two exports of one checkpoint have the same, though what they measured on the way may differ.
    """
    manifest = placement.artifact.manifest
    names = (manifest.tokenizer, *placement.files)
    parts = (manifest.template, manifest.max_length, [manifest.files[name].sha256 for name in names])
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def open_again(origin: Origin, expected: str) -> Model:
    """Open what was pickled. Raises ArtifactError if it is not here, or not the same any more."""
    try:
        model = open_model(origin.source, origin.options)
    except ArtifactError as error:
        raise ArtifactError(
            f"a pickled reranker is loaded again from where it came, which fails on the host {platform.node()}:"
            f" {error}. Put it at the same place on every host, or load it from the hub"
        ) from error
    if fingerprint(model.placement) != expected:
        raise ArtifactError(
            f"{origin.source} on the host {platform.node()} has changed since this reranker was pickled: its"
            f" {model.placement.variant.name} has other files. Load it again, or name a revision of the hub"
        )
    return model


def _open_cpu(placement: Placement, n_threads: int, *, prepare: bool, shares_prefixes: bool) -> Backend:
    """Load a variant for the CPU; if `prepare`, from the host's cache of prepared models where it belongs there."""
    artifact, variant = placement.artifact, placement.variant
    artifact.check_sizes(variant.files)
    cache = find_cache()
    hashes = FileHashes(artifact.folder, cache)
    if variant.key.is_for_openvino:
        from rankrt.backends.openvino import OpenVinoEncoder

        with _checked(artifact, variant, hashes):
            return OpenVinoEncoder(artifact.path(variant.graph), variant.layout, n_threads=n_threads)
    found = _prepared(placement, cache, hashes) if prepare and placement.can_be_prepared and cache else None
    with _checked(artifact, variant, hashes):
        if found is not None:
            return _opened_prepared(placement, *found, n_threads, shares_prefixes=shares_prefixes)
        graphs = [artifact.path(name) for name in variant.graphs]
        return _opened(placement, graphs, n_threads, placement.form, shares_prefixes=shares_prefixes)


def _opened_prepared(
    placement: Placement, graphs: list[Path], use: Use, n_threads: int, *, shares_prefixes: bool = True
) -> Backend:
    backend = _opened(placement, graphs, n_threads, "prepared", shares_prefixes=shares_prefixes)
    use.until_gone(backend)
    return backend


def _opened(placement: Placement, graphs: list[Path], n_threads: int, form: Form, *, shares_prefixes: bool) -> Backend:
    variant = placement.variant
    if variant.exits:
        from rankrt.backends.cpu_decoder import CpuDecoder

        return CpuDecoder(
            graphs,
            list(variant.graphs_by_layer),
            ratios={found.layer: found.ratio for found in variant.compressions},
            n_threads=n_threads,
            form=form,
            shares_prefixes=shares_prefixes,
        )
    return CpuEncoder(graphs[0], variant.layout, n_threads=n_threads, form=form)


def _prepared(placement: Placement, cache: HostCache, hashes: FileHashes) -> tuple[list[Path], Use] | None:
    """Return the prepared graphs, or None, with a warning, where the host has no room or no right to keep one."""
    try:
        if (found := Prepared(cache).graphs(placement)) is not None:
            return found
        from rankrt.loading.prepare import prepare_for_cpu

        return prepare_for_cpu(placement, Prepared(cache), hashes)
    except CacheError as error:
        go_on_without(error)
        return None


def _open_engines(placement: Placement) -> "GpuBackend":
    """Load the TensorRT engines that were prepared for a variant."""
    from rankrt.backends.tensorrt_engines import open_tensorrt

    artifact, variant, record = placement.artifact, placement.variant, placement.record
    prepared, key = Prepared(), key_of(placement)
    before = {*prepared.engine_names(key)}
    if record is None or record.max_length is None or not {*record.engines} <= before:
        raise DeviceError(
            f"{variant.name} has no engines on this host, or not all of them. Build them: {prepare_command(placement)}"
        )
    use = prepared.use(key)
    backend = open_tensorrt(
        artifact.path(variant.graph),
        variant.layout,
        placement.device,
        max_length=record.max_length,
        engines=prepared.engines(key),
        timings=prepared.timings,
        n_weight_bytes=artifact.n_weight_bytes(variant),
    )
    use.until_gone(backend)
    if new := {*prepared.engine_names(key)} - {*record.engines}:
        _logger.warning("ONNX Runtime built engines again instead of loading them: %s", ", ".join(sorted(new)))
    return backend


@contextmanager
def _checked(artifact: Artifact, variant: Variant, hashes: FileHashes) -> Iterator[None]:
    """Compare a variant's files with the manifest while it is opened: small ones before, large ones beside.

    A large file that is as it was when it was last read whole is not read again: a GB takes 0.65 s of one core, or
    2.0 s without instructions for it. ONNX Runtime's words on a changed file hide what happened, so the check's error
    goes first.
    """
    large = [name for name in variant.files if artifact.manifest.files[name].n_bytes > SMALL_BYTES]
    artifact.check_hashes(set(variant.files).difference(large))
    artifact.check_sizes(large)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        checks = [pool.submit(artifact.check_hashes, [name], hashes.sha256) for name in large]
        try:
            yield
        finally:
            for check in checks:
                check.result()
    hashes.save()


def _check_threads(n_threads: int | None, machine: Machine) -> None:
    """Raise InputError for far more threads than the host has processors."""
    n_cpus = os.cpu_count() or machine.cores.n
    if n_threads is not None and n_threads > _MOST_THREADS_PER_CPU * n_cpus:
        raise InputError(
            f"n_threads={n_threads}, but this host has {n_cpus} CPUs, of which {machine.cores.n} cores are worth a"
            " thread; drop n_threads to use those"
        )
