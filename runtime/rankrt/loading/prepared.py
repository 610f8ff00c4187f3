"""What the host's cache has of models that were made ready for this host. Finds it; makes nothing.

For a processor these are graphs that ONNX Runtime has optimised, with weights in its kernels' layout, and vocabularies
as arrays: all processes map them and share their memory. For a GPU it is a record of scores that were compared with
PyTorch's, beside TensorRT's engines where there are any. For a variant in brain floats it is such a record, with its
speed. An entry belongs to one artifact and one host's hardware and
software, so it is kept on the host, not in the artifact.
"""

from pathlib import Path

import msgspec

from rankrt.artifact.manifest import Variant
from rankrt.artifact.precisions import PRECISIONS, TARGETS
from rankrt.backends.openvino import openvino_version
from rankrt.backends.providers import tensorrt_version
from rankrt.backends.session import import_onnxruntime, installed_builds
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache, Key, Kind, Use
from rankrt.host.cpu import Machine
from rankrt.host.gpus import Gpu
from rankrt.loading.placement import Placement, Record
from rankrt.notices import warn_once

GRAPH, WEIGHTS = "model{}.onnx", "weights{}.data"
_RECORD = "record.json"
# Logits of this host against PyTorch's, which other kernels sum in another order; a wrong kernel is off by far more.
_SLACK = 1e-3


class Prepared:
    """The entries of this host's cache for variants that were prepared."""

    def __init__(self, cache: HostCache | None = None) -> None:
        """Take a cache, or this user's. Raises CacheError if there is no place for one."""
        self.cache = cache or HostCache()

    @property
    def folder(self) -> Path:
        """Where what is prepared for processors is."""
        return self.cache.folder / "prepared"

    @property
    def timings(self) -> Path:
        """Where TensorRT keeps what it has measured of kernels, for all engines."""
        return self.cache.folder / "gpu" / "timings"

    def graphs(self, placement: Placement) -> tuple[list[Path], Use] | None:
        """Return the prepared graphs of a variant for the CPU if there are sound ones."""
        use = self.cache.find(key_of(placement))
        return None if use is None else (graphs_in(use, placement.variant), use)

    def record(self, key: Key) -> Record | None:
        """Return the record of exactly this, if there is one."""
        return _read(self.engines(key) / _RECORD)

    def record_like(self, key: Key) -> Record | None:
        """Return a record of the same variant of the same artifact that was made for another host."""
        wanted = (key.depends_on["artifact"], key.variant)
        return next((r for r in self.records() if (r.key.depends_on.get("artifact"), r.key.variant) == wanted), None)

    def records(self) -> list[Record]:
        """Return the records that can be read, sorted by name."""
        paths = sorted((self.cache.folder / "gpu").glob(f"*/{_RECORD}"))
        return [record for path in paths if (record := _read(path)) is not None]

    def engines(self, key: Key) -> Path:
        """Return the folder that TensorRT's engines are in."""
        return self.cache.path(key)

    def engine_names(self, key: Key) -> tuple[str, ...]:
        """Return the names of the engines that are there."""
        return tuple(sorted(path.name for path in self.engines(key).glob("*.engine")))

    def use(self, key: Key) -> Use:
        """Keep engines from being removed."""
        return self.cache.use(self.engines(key))

    def write(self, record: Record) -> None:
        """Keep a record; it is there whole or not at all."""
        folder = self.engines(record.key)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{_RECORD}"
        unfinished.write_bytes(msgspec.json.encode(record))
        unfinished.replace(folder / _RECORD)
        # ONNX Runtime may write engines again, so they are not sealed.
        self.cache.seal(record.key, [_RECORD])


def key_of(placement: Placement) -> Key:
    """Return what a prepared variant depends on: the artifact, this host's hardware, and all software below."""
    artifact, gpu, machine = placement.artifact, placement.gpu, placement.host.machine
    kind: Kind
    if placement.variant.key.is_for_openvino:
        kind, depends_on = "measured", _of_cpu(machine, f"openvino {openvino_version()}")
    elif gpu is None:
        kind, depends_on = "prepared", _of_cpu(machine, f"onnxruntime {import_onnxruntime().__version__}")
    else:
        kind, depends_on = "gpu", _of_gpu(placement, gpu)
    return Key(
        kind=kind,
        name=artifact.manifest.name,
        variant=placement.variant.name,
        depends_on={**depends_on, "artifact": artifact.identity},
    )


def _of_cpu(machine: Machine, library: str) -> dict[str, str]:
    return {"engine": library, "processor": " ".join((machine.architecture, *machine.instructions))}


def _of_gpu(placement: Placement, gpu: Gpu) -> dict[str, str]:
    builds = ", ".join(f"{name} {version}" for name, version in installed_builds().items())
    found = {
        "gpu": gpu.name,
        "driver": placement.host.gpus.driver,
        "engine": builds or f"onnxruntime {import_onnxruntime().__version__}",
        "tensorrt": tensorrt_version() if TARGETS[placement.device.target].builds_engines else None,
        "capability": gpu.capability,
    }
    return {name: value for name, value in found.items() if value is not None}


def differences(mine: Key, other: Key) -> str:
    """Say in words what two entries depend on that is not the same, this one's first."""
    names = dict.fromkeys((*mine.depends_on, *other.depends_on))
    pairs = [(name, mine.depends_on.get(name), other.depends_on.get(name)) for name in names]
    return ", ".join(f"{name} {here} instead of {there}" for name, here, there in pairs if here != there)


def graphs_in(use: Use, variant: Variant) -> list[Path]:
    """Return the graphs of an entry, in the order in which they run."""
    return [use.folder / GRAPH.format(number or "") for number in range(len(variant.graphs))]


def find_record(key: Key) -> Record | None:
    """Return the record of exactly this, if there is one, and a cache where it could be."""
    return None if (cache := find_cache()) is None else Prepared(cache).record(key)


def find_record_like(key: Key) -> Record | None:
    """Return a record of the same variant of the same artifact that was made for another host."""
    return None if (cache := find_cache()) is None else Prepared(cache).record_like(key)


def find_cache() -> HostCache | None:
    """Return the host's cache, or None, with a warning, for a user who has no place for one."""
    try:
        return HostCache()
    except CacheError as error:
        go_on_without(error)
        return None


def go_on_without(error: CacheError) -> None:
    """Say, once, that nothing prepared is used."""
    warn_once(f"not using the cache, so loading takes longer and memory is not shared: {error}")


def prepare_command(placement: Placement, max_length: int | None = None) -> str:
    """Return the command that prepares an artifact for a device."""
    device, length = placement.device, "" if max_length is None else f" --max-length {max_length}"
    shortest = device if device.index else device.target
    return f"rankrt prepare {placement.artifact.folder} --device {shortest}{length}"


def drift_limit(variant: Variant) -> float:
    """Return how far logits of the manifest's examples may be from PyTorch's on another host than the export's."""
    if variant.verification is None:  # what the export allows by default
        return max(_SLACK, PRECISIONS[variant.precision].max_difference)
    return max(_SLACK, 2 * variant.verification.max_difference)


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):  # not there, not for this user, or of another version: prepare it again
        return None
