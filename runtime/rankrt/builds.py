"""The host's records of what `rankrt build` built and verified for its GPUs; a record belongs to one GPU and driver.

Engines lie beside the record that speaks of them, all below one folder of the cache. Loads none of them.
"""

import hashlib
import shutil
from pathlib import Path

import msgspec

from rankrt import gpus
from rankrt.artifact import Artifact, Precision, Variant
from rankrt.atomic import cache_folder, size_of
from rankrt.backends.ort import import_onnxruntime, installed_engines
from rankrt.backends.providers import gpu_for, tensorrt_version
from rankrt.devices import Device

_RECORD, _UNFINISHED = "build.json", ".build.json"
# Logits of this host against PyTorch's, which other kernels sum in another order; a wrong kernel is off by far more.
SLACK = 1e-3
# What a variant may drift that nobody could verify where it was exported: what the export allows by default.
_UNVERIFIED_LIMITS: dict[Precision, float] = {
    "fp32": SLACK,
    "fp16": 0.25,
    "w8": 0.25,
    "int8": 0.25,
    "fp8": 0.25,
    "int4": 2.0,
}


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
    def folder_name(self) -> str:
        """A name that nothing else has."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return f"{self.name}-{self.variant}-{digest[:16]}"

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
    """The records below one folder. Processes may share it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "gpu"

    @property
    def timings(self) -> Path:
        """Where TensorRT keeps what it has measured of kernels, for all engines."""
        return self.folder / "timings"

    def engines(self, key: BuiltFor) -> Path:
        """Return the folder that the engines of a build are in."""
        return self.folder / key.folder_name

    def engine_names(self, key: BuiltFor) -> tuple[str, ...]:
        """Return the names of the engines that are there for a build."""
        return tuple(sorted(path.name for path in self.engines(key).glob("*.engine")))

    def find(self, key: BuiltFor) -> Build | None:
        """Return the record of exactly this, if there is one."""
        return _read(self.engines(key) / _RECORD)

    def like(self, key: BuiltFor) -> Build | None:
        """Return a record of the same variant of the same artifact that was made for something else."""
        wanted = (key.artifact, key.variant)
        found = (build for build, _ in self.entries())
        return next((b for b in found if (b.built_for.artifact, b.built_for.variant) == wanted), None)

    def write(self, build: Build) -> None:
        """Keep a record; it is there whole or not at all."""
        folder = self.engines(build.built_for)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _UNFINISHED).write_bytes(msgspec.json.encode(build))
        (folder / _UNFINISHED).replace(folder / _RECORD)

    def entries(self) -> list[tuple[Build, int]]:
        """Return what is there, with sizes in bytes, sorted by name; what cannot be read is left out."""
        paths = sorted(self.folder.glob(f"*/{_RECORD}"))
        return [(build, size_of(path.parent)) for path in paths if (build := _read(path)) is not None]

    def clear(self) -> int:
        """Remove everything and return the bytes freed."""
        n_bytes = size_of(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return n_bytes


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
        tensorrt=tensorrt_version() if device.target == "tensorrt" else None,
    )


def find_build(artifact: Artifact, variant: Variant, device: Device) -> Build | None:
    """Return the record of a build of a variant for a device of this host."""
    return Builds().find(built_for(artifact, variant, device))


def build_command(folder: Path, device: Device, max_length: int | None = None) -> str:
    """Return the command that builds for a device."""
    number = f" --device {device.index}" if device.index else ""
    length = "" if max_length is None else f" --max-length {max_length}"
    return f"rankrt build {folder} --target {device.target}{number}{length}"


def drift_limit(variant: Variant) -> float:
    """Return how far logits of the manifest's examples may be from PyTorch's on another host than the export's."""
    if variant.verification is None:
        return _UNVERIFIED_LIMITS[variant.precision]
    return max(SLACK, 2 * variant.verification.max_difference)


def _read(path: Path) -> Build | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Build)
    except (FileNotFoundError, msgspec.MsgspecError):  # not there, or of another version: build again
        return None
