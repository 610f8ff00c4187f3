"""The host's records of what `rankrt build` built and verified for its GPUs; a record belongs to one GPU and driver.

Engines lie beside the record that speaks of them, all below one folder of the cache. Loads none of them.
"""

from pathlib import Path

import msgspec

from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import TARGETS
from rankrt.backends.providers import gpu_for, tensorrt_version
from rankrt.backends.session import import_onnxruntime, installed_engines
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache, Key, Use, warn_once
from rankrt.host import gpus
from rankrt.host.device import Device

_RECORD = "build.json"
# Logits of this host against PyTorch's, which other kernels sum in another order; a wrong kernel is off by far more.
SLACK = 1e-3


class BuiltFor(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine depends on: the artifact's identity, a variant, the GPU and all software below."""

    name: str
    variant: str
    artifact: str
    gpu: str
    capability: str
    driver: str | None
    engine: str
    tensorrt: str | None

    @property
    def key(self) -> Key:
        """The same as the cache has it."""
        what = msgspec.to_builtins(self)
        depends_on = {name: what[name] for name in ("gpu", "driver", "engine", "tensorrt", "capability", "artifact")}
        known = {name: value for name, value in depends_on.items() if value is not None}
        return Key(kind="gpu", name=self.name, variant=self.variant, depends_on=known)

    def differences(self, other: "BuiltFor") -> str:
        """Say in words what is not the same, this one's first."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__]
        return ", ".join(f"{name} {mine} instead of {others}" for name, mine, others in pairs if mine != others)


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """What was built, and how it compares with the PyTorch model's logits in the manifest.

    max_length      the most tokens of a row that the engines take; None is whatever the model takes
    engines         the files of the engines
    n_examples      how many examples were scored; without any the variant ran, but is not verified
    max_difference  of all of them in all engines, in logits
    limit           what it was allowed to be
    """

    built_for: BuiltFor
    max_length: int | None
    engines: tuple[str, ...]
    n_examples: int
    max_difference: float
    limit: float

    @property
    def is_verified(self) -> bool:
        """Whether scores were compared."""
        return self.n_examples > 0


class Builds:
    """The records of a host, and the engines beside them."""

    def __init__(self, cache: HostCache | None = None) -> None:
        """Take a cache, or this user's. Raises CacheError if there is no place for one."""
        self.cache = cache or HostCache()

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self.cache.folder / "gpu"

    @property
    def timings(self) -> Path:
        """Where TensorRT keeps what it has measured of kernels, for all engines."""
        return self.folder / "timings"

    def engines(self, built: BuiltFor) -> Path:
        """Return the folder that the engines of a build are in."""
        return self.cache.path(built.key)

    def engine_names(self, built: BuiltFor) -> tuple[str, ...]:
        """Return the names of the engines that are there for a build."""
        return tuple(sorted(path.name for path in self.engines(built).glob("*.engine")))

    def use(self, built: BuiltFor) -> Use:
        """Keep a build from being removed."""
        return self.cache.use(self.engines(built))

    def find(self, built: BuiltFor) -> Build | None:
        """Return the record of exactly this, if there is one."""
        return _read(self.engines(built) / _RECORD)

    def like(self, built: BuiltFor) -> Build | None:
        """Return a record of the same variant of the same artifact that was made for something else."""
        wanted = (built.artifact, built.variant)
        return next((b for b in self.all() if (b.built_for.artifact, b.built_for.variant) == wanted), None)

    def write(self, build: Build) -> None:
        """Keep a record; it is there whole or not at all."""
        folder = self.engines(build.built_for)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{_RECORD}"
        unfinished.write_bytes(msgspec.json.encode(build))
        unfinished.replace(folder / _RECORD)
        # ONNX Runtime may write engines again, so they are not sealed.
        self.cache.seal(build.built_for.key, [_RECORD])

    def all(self) -> list[Build]:
        """Return the records that can be read, sorted by name."""
        paths = sorted(self.folder.glob(f"*/{_RECORD}"))
        return [build for path in paths if (build := _read(path)) is not None]


def built_for(artifact: Artifact, variant: Variant, device: Device) -> BuiltFor:
    """Return what a build of a variant on a device of this host belongs to. Raises DeviceError without that GPU."""
    gpu = gpu_for(device)
    engine = ", ".join(f"{name} {version}" for name, version in installed_engines().items())
    return BuiltFor(
        name=artifact.manifest.name,
        variant=variant.name,
        artifact=artifact.identity,
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpus.find_gpus().driver,
        engine=engine or f"onnxruntime {import_onnxruntime().__version__}",
        tensorrt=tensorrt_version() if TARGETS[device.target].builds_engines else None,
    )


def find_build(artifact: Artifact, variant: Variant, device: Device) -> Build | None:
    """Return the record of a build of a variant for a device of this host; None, too, where there is no cache."""
    try:
        return Builds().find(built_for(artifact, variant, device))
    except CacheError as error:
        warn_once(str(error))
        return None


def build_command(folder: Path, device: Device, max_length: int | None = None) -> str:
    """Return the command that builds for a device."""
    number = f" --device {device.index}" if device.index else ""
    length = "" if max_length is None else f" --max-length {max_length}"
    return f"rankrt build {folder} --target {device.target}{number}{length}"


def drift_limit(variant: Variant) -> float:
    """Return how far logits of the manifest's examples may be from PyTorch's on another host than the export's."""
    if variant.verification is None:  # what the export allows by default
        return max(SLACK, variant.key.row.max_difference)
    return max(SLACK, 2 * variant.verification.max_difference)


def _read(path: Path) -> Build | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Build)
    except (OSError, msgspec.MsgspecError):  # not there, not for this user, or of another version: build again
        return None
