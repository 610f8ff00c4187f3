"""The variants of an artifact on this host: which can be used, and each loaded once, when it is first asked for."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import Artifact, InstructionSet, Precision, Variant
from rankrt.backends import Backend
from rankrt.backends.cpu import OrtCpu
from rankrt.backends.cpu_causal import OrtCausal
from rankrt.backends.cuda import open_cuda
from rankrt.backends.gpu import GpuBackend
from rankrt.backends.tensorrt_engines import open_tensorrt
from rankrt.errors import CacheError, ClosedError, DeviceError
from rankrt.files.cache import HostCache, Use, warn_once
from rankrt.files.seals import SMALL_BYTES
from rankrt.host.cpu import Machine, this_machine
from rankrt.host.device import Device
from rankrt.loading.builds import Builds, build_command, find_build
from rankrt.loading.prepared import PreparedModels
from rankrt.text.tokenizers import LibraryTokenizer, TextTokenizer
from rankrt.text.unigram import UnigramTokenizer

_NEED_BYTES: tuple[Precision, ...] = ("int8",)
# Our own tokenizer keeps one core busy, the library's all of them. Of text in twelve languages they make 306,000 and
# 200,000 tokens a second and thread, measured on a machine that was busy; a large GPU takes more than half a million.
_LIBRARY_CORES = 4

# Two files at a time keep a fast disk busy; more would take cores from the engine, which is loading.
_HASHING_THREADS = 2

_logger = logging.getLogger("rankrt")


class Variants:
    """Loaded variants. Threads may share them, and so may rerankers with different rules.

    A child that is forked has none of their threads, so it loads its own when it first needs them.
    """

    def __init__(
        self,
        find: Callable[[Precision | Literal["auto"]], Variant],
        open_variant: Callable[[Variant], Backend | OrtCausal],
        device: Device = Device("cpu"),  # noqa: B008 - frozen
    ) -> None:
        """`find` returns the variant in a precision, with its files in place; `open_variant` loads one on `device`."""
        self.find = find
        self.device = device
        self._open = open_variant
        self._backends: dict[str, Backend | OrtCausal] = {}
        # Of the process that this one was forked from: not used here, and not destroyed either.
        self._of_parent: list[dict[str, Backend | OrtCausal]] = []
        self._is_closed = False
        self._begin()
        _all_variants.add(self)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep loaded what is loaded, even if it is closed meanwhile. Raises ClosedError if it was closed before."""
        with self._lock:
            if self._is_closed:
                raise ClosedError("this reranker was closed, or one that shares its model; load it again")
            self._n_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_users -= 1
                self._release_if_closed()

    def backend(self, variant: Variant) -> Backend | OrtCausal:
        """Return the loaded variant, to one who uses them."""
        if (found := self._backends.get(variant.name)) is not None:
            return found
        with self._loading:
            if variant.name not in self._backends:
                if self._of_parent and self.device.is_gpu:
                    raise DeviceError(
                        f"a forked process cannot use {self.device}, which its parent used; load the reranker in the"
                        ' child, or start it with multiprocessing.get_context("spawn")'
                    )
                self._backends[variant.name] = self._open(variant)
            return self._backends[variant.name]

    def close(self) -> None:
        """Release all that were loaded: at once, or when the last call that uses them ends."""
        with self._lock:
            self._is_closed = True
            self._release_if_closed()

    def _begin(self) -> None:
        self._n_users = 0
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def _release_if_closed(self) -> None:
        if self._is_closed and not self._n_users:
            for name in list(self._backends):
                self._backends.pop(name).close()

    def _begin_in_child(self) -> None:
        """Begin again after a fork: what is loaded has no threads, and a lock may be held by one that is not here."""
        self._of_parent.append(self._backends)
        self._backends = {}
        self._begin()


_all_variants: WeakSet[Variants] = WeakSet()


def _begin_in_child() -> None:
    for variants in _all_variants:
        variants._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def choose(
    artifact: Artifact,
    precision: Precision | Literal["auto"],
    machine: Machine,
    instruction_set: InstructionSet | None = None,
) -> Variant:
    """Return the variant for this host's CPU: see `Artifact.choose`; int8 only where it is faster than fp32.

    Of two int8 graphs it is the one for this processor, unless an instruction set is asked for. Raises DeviceError if
    there is none, or if int8 is asked for by name on a processor that gains nothing from it.
    """
    if instruction_set is not None:
        return artifact.choose("cpu", precision, instruction_sets=(instruction_set,))
    if machine.multiplies_bytes:
        return artifact.choose("cpu", precision, instruction_sets=machine.instruction_sets)
    if precision in _NEED_BYTES:
        raise DeviceError(
            f"{machine.processor} has no fast products of bytes (AVX2, or asimddp on Arm): int8 would be slower than"
            " fp32 here; use precision='fp32'"
        )
    variant = artifact.choose("cpu", precision, without=_NEED_BYTES)
    if precision == "auto" and any(v.precision == "int8" and v.verification for v in artifact.manifest.variants):
        _logger.warning("%s has no fast products of bytes: using %s, not int8", machine.processor, variant.precision)
    return variant


def open_variant(
    artifact: Artifact,
    variant: Variant,
    device: Device,
    *,
    n_threads: int,
    prepare: bool,
    gpu_memory_bytes: int | None = None,
) -> Backend | OrtCausal:
    """Load a variant. CPU options are ignored on GPU and vice versa. Raises ArtifactError or DeviceError."""
    if device.is_gpu:
        return open_gpu(artifact, variant, device, memory_bytes=gpu_memory_bytes)
    return open_cpu(artifact, variant, this_machine(), n_threads, prepare=prepare)


def open_gpu(artifact: Artifact, variant: Variant, device: Device, *, memory_bytes: int | None = None) -> GpuBackend:
    """Load a variant on a GPU; for TensorRT the engines that were built for it. Raises ArtifactError or DeviceError."""
    with _checked(artifact, variant, FileHashes(artifact.folder, _cache())):
        graph = artifact.path(variant.graph)
        if device.target == "cuda":
            n_weight_bytes = artifact.n_weight_bytes(variant)
            return open_cuda(graph, variant.layout, device, n_weight_bytes=n_weight_bytes, memory_bytes=memory_bytes)
        return _open_engines(artifact, variant, device, graph)


def open_cpu(
    artifact: Artifact, variant: Variant, machine: Machine, n_threads: int, *, prepare: bool
) -> Backend | OrtCausal:
    """Load a variant for the CPU, from the host's cache of prepared models if `prepare`."""
    artifact.check_sizes(variant.files)
    cache = _cache()
    hashes = FileHashes(artifact.folder, cache)
    prepared = _prepared(PreparedModels(cache), artifact, variant, machine, hashes) if prepare and cache else None
    with _checked(artifact, variant, hashes):
        if prepared is None:
            graphs = [artifact.path(name) for name in variant.graphs]
            return _opened(graphs, variant, n_threads, is_prepared=False)
        graphs, use = prepared
        backend = _opened(graphs, variant, n_threads, is_prepared=True)
    use.until_gone(backend)
    return backend


def open_kept(artifact: Artifact, variant: Variant, *, n_threads: int) -> Backend | OrtCausal | None:
    """Load a variant for the CPU from the host's cache alone, whatever has become of the artifact's folder.

    None if it is not for the CPU, or has no sound entry there.
    """
    cache = _cache()
    found = PreparedModels(cache).find(artifact, variant, this_machine()) if cache and variant.target == "cpu" else None
    if found is None:
        return None
    graphs, use = found
    backend = _opened(graphs, variant, n_threads, is_prepared=True)
    use.until_gone(backend)
    return backend


def _opened(graphs: Sequence[Path], variant: Variant, n_threads: int, *, is_prepared: bool) -> Backend | OrtCausal:
    how: Any = {"n_threads": n_threads, "is_prepared": is_prepared, "instruction_set": variant.instruction_set}
    if variant.exits:
        return OrtCausal(graphs, [end.layer for end in variant.exits], **how)
    return OrtCpu(graphs[0], variant.layout, **how)


def open_tokenizer(artifact: Artifact, *, prepare: bool, n_cores: int = 1) -> TextTokenizer:
    """Open an artifact's tokenizer: over a vocabulary in arrays, which are mapped if `prepare`, or the library's.

    `n_cores` are those that it is to keep busy, for a GPU: many are only kept busy by the library. Ids are the same.
    Raises ArtifactError if the file is not the one that was exported.
    """
    name = artifact.manifest.tokenizer
    path = artifact.path(name)
    artifact.check_hashes([name])
    if n_cores >= _LIBRARY_CORES:
        return LibraryTokenizer.open(path)
    if prepare and (cache := _cache()) is not None:
        try:
            return PreparedModels(cache).tokenizer(artifact) or LibraryTokenizer.open(path)
        except CacheError as error:
            _go_on_without(error)
    return UnigramTokenizer.read(path) or LibraryTokenizer.open(path)


@contextmanager
def _checked(artifact: Artifact, variant: Variant, hashes: FileHashes) -> Iterator[None]:
    """Compare a variant's files with the manifest while it is opened: small ones before, large ones beside.

    A large file that is as it was when it was last read whole is not read again: a GB takes 0.65 s of one core, or
    2.0 s without instructions for it. What the engine says of a changed file hides what happened, so the check's error
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


def _prepared(
    models: PreparedModels, artifact: Artifact, variant: Variant, machine: Machine, hashes: FileHashes
) -> tuple[list[Path], Use] | None:
    """Return the prepared graphs, or None, with a warning, where the host has no room or no right to keep one."""
    key = models.key(artifact, variant, machine)
    try:
        return models.graphs(key, artifact, variant, hashes)
    except CacheError as error:
        _go_on_without(error)
        return None


def _open_engines(artifact: Artifact, variant: Variant, device: Device, graph: Path) -> GpuBackend:
    """Load the TensorRT engines that were built for a variant."""
    missing = DeviceError(
        f"{variant.name} has no engines on this host, or not all of them. Build them:"
        f" {build_command(artifact.folder, device)}"
    )
    build = find_build(artifact, variant, device)
    if build is None or build.max_length is None:
        raise missing
    builds = Builds()
    if not {*build.engines} <= {*builds.engine_names(build.built_for)}:
        raise missing
    use = builds.use(build.built_for)
    backend = open_tensorrt(
        graph,
        variant.layout,
        device,
        max_length=build.max_length,
        engines=builds.engines(build.built_for),
        timings=builds.timings,
        n_weight_bytes=artifact.n_weight_bytes(variant),
    )
    use.until_gone(backend)
    if new := {*builds.engine_names(build.built_for)} - {*build.engines}:
        _logger.warning("ONNX Runtime built engines again instead of loading them: %s", ", ".join(sorted(new)))
    return backend


def _cache() -> HostCache | None:
    """Return the host's cache, or None, with a warning, for a user who has no place for one."""
    try:
        return HostCache()
    except CacheError as error:
        _go_on_without(error)
        return None


def _go_on_without(error: CacheError) -> None:
    warn_once(f"not using the cache, so loading takes longer and memory is not shared: {error}")
