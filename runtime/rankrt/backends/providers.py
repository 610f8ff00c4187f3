"""ONNX Runtime's providers: which one a device needs, and what keeps this host from it.

It finds out before a session is made. ONNX Runtime itself continues without a provider whose libraries it cannot load.
Every refusal is a DeviceError with the reason and what to do.
"""

import contextlib
import ctypes
import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rankrt.artifact.precisions import Target
from rankrt.backends.session import import_onnxruntime, installed_builds
from rankrt.errors import DeviceError
from rankrt.host.device import Device
from rankrt.host.gpus import Gpu, Gpus
from rankrt.host.host import Host

_NO_LIBRARY = re.compile(r"Failed to load [^:]*: (.*)")
# The images in onnxruntime-gpu 1.31.1 (cuobjdump): sm_75, 80, 86, 89, 90a, 120a. That of 8.0 runs on each 8.x.
_MACHINE_CODE = ((7, 5), (9, 0), (12, 0))
# What the TensorRT provider links that CUDA's does not; the numbers are read from the provider itself.
_TENSORRT_LIBRARIES = re.compile(rb"lib(?:cudnn|nvinfer|nvonnxparser)\.so\.\d+")


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider's name, and what ONNX Runtime calls the memory of its inputs."""

    name: str
    memory: str


PROVIDERS: dict[Target, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "cpu"),
    "cuda": Provider("CUDAExecutionProvider", "cuda"),
    "tensorrt": Provider("TensorrtExecutionProvider", "cuda"),
}
_EXTRAS: dict[Target, str] = {"cpu": "rankrt[cpu]", "cuda": "rankrt[gpu]", "tensorrt": "rankrt[tensorrt]"}


def gpu_for(device: Device, host: Host) -> Gpu:
    """Return the GPU that a device names, with its libraries loaded into this process.

    Raises DeviceError, with the reason, if nothing can run on it here.
    """
    ort, provider = import_onnxruntime(), PROVIDERS[device.target]
    if provider.name not in ort.get_available_providers():
        builds = ", ".join(f"{name} {version}" for name, version in installed_builds().items()) or "this onnxruntime"
        raise DeviceError(
            f"device '{device}' needs {provider.name}, which {builds} does not have. Install the build for GPUs in its"
            f" place: pip uninstall onnxruntime onnxruntime-gpu; pip install '{_EXTRAS[device.target]}'"
        )
    found = host.gpus
    if found.reason is not None:
        raise DeviceError(f"device '{device}' needs an NVIDIA GPU: {found.reason}")
    if device.index >= len(found.found):
        seen = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in found.found)
        raise DeviceError(f"device '{device}' is not there; this process sees {seen} (CUDA_VISIBLE_DEVICES says which)")
    gpu = found.found[device.index]
    if provider.memory == "cuda":
        _check_driver(device, found, cuda_version(ort))
        _check_machine_code(device, gpu)
        _check_libraries(device)
    return gpu


def cuda_version(ort: Any) -> tuple[int, int] | None:
    """Return the (major, minor) of CUDA that an onnxruntime was built for; None for a build without CUDA."""
    match = re.match(r"(\d+)\.(\d+)", str(getattr(ort, "cuda_version", "") or ""))
    return (int(match[1]), int(match[2])) if match else None


def check_cudnn(device: Device) -> None:
    """Raise DeviceError if cuDNN, which only decoders need, cannot be loaded. Loading a model would not notice it."""
    if PROVIDERS[device.target].memory == "cuda" and (said := _cannot_load("libcudnn.so.9")) is not None:
        raise DeviceError(
            f"device '{device}' cannot run a decoder without cuDNN: {said}."
            f" It comes with: pip install '{_EXTRAS[device.target]}'"
        )


def missing_libraries(target: Target) -> tuple[str, ...]:
    """Load the libraries that a GPU provider links, and return what the loader said of those that it could not."""
    missing = _missing_cuda_libraries()
    return missing + _missing_tensorrt_libraries() if target == "tensorrt" else missing


def tensorrt_libraries() -> list[str]:
    """Return the libraries that this onnxruntime's TensorRT provider links besides CUDA's, such as libnvinfer.so.10."""
    folder = Path(import_onnxruntime().__file__).parent / "capi"
    provider = folder / "libonnxruntime_providers_tensorrt.so"
    if not provider.exists():
        return []
    return sorted({name.decode() for name in _TENSORRT_LIBRARIES.findall(provider.read_bytes())})


def tensorrt_library() -> str | None:
    """Return the name of TensorRT itself among them; its number is the major version."""
    return next((name for name in tensorrt_libraries() if name.startswith("libnvinfer.")), None)


def tensorrt_version() -> str | None:
    """Return TensorRT's version as its library says it, such as "10.16.1"; None where there is none."""
    if (name := tensorrt_library()) is None or _cannot_load(name) is not None:
        return None
    return _dotted(int(ctypes.CDLL(name).getInferLibVersion()))


def library_versions(target: Target) -> dict[str, str]:
    """Return the versions of the libraries that are loaded, as they say them themselves; none for what is not there."""
    major = (cuda_version(import_onnxruntime()) or (0, 0))[0]
    found = {"CUDA": _cuda_runtime(f"libcudart.so.{major}"), "cuDNN": _cudnn("libcudnn.so.9")}
    if target == "tensorrt":
        found["TensorRT"] = tensorrt_version()
    return {name: version for name, version in found.items() if version is not None}


def _cuda_runtime(library: str) -> str | None:
    number = ctypes.c_int()
    if _cannot_load(library) is not None or ctypes.CDLL(library).cudaRuntimeGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _cudnn(library: str) -> str | None:
    if _cannot_load(library) is not None:
        return None
    get = ctypes.CDLL(library).cudnnGetVersion
    get.restype = ctypes.c_size_t
    return _dotted(int(get()))


def _dotted(number: int) -> str:
    """Return a version of cuDNN 9 or TensorRT 10 as people write it: 101601 is 10.16.1."""
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


@cache
def _missing_cuda_libraries() -> tuple[str, ...]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses
        import_onnxruntime().preload_dlls()
    return tuple(_NO_LIBRARY.findall(said.getvalue()))


@cache
def _missing_tensorrt_libraries() -> tuple[str, ...]:
    return tuple(said for name in tensorrt_libraries() if (said := _cannot_load(name)) is not None)


def _cannot_load(library: str) -> str | None:
    """Load a library of the TensorRT wheel, or else wherever the loader finds it; return the loader's words if not."""
    try:
        ctypes.CDLL(str(next(_in_wheels(library), library)))
    except OSError as error:
        return str(error)
    return None


def _in_wheels(library: str) -> Iterator[Path]:
    spec = importlib.util.find_spec("tensorrt_libs")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / library).exists():
            yield path


def _check_driver(device: Device, found: Gpus, built_for: tuple[int, int] | None) -> None:
    if built_for is None or found.cuda is None or found.cuda[0] >= built_for[0]:
        return
    raise DeviceError(
        f"device '{device}': this onnxruntime was built for CUDA {built_for[0]}, but the driver"
        f" {found.driver or 'here'} runs CUDA up to {found.cuda[0]}.{found.cuda[1]}: install a newer driver"
    )


def _check_machine_code(device: Device, gpu: Gpu) -> None:
    """Refuse a GPU for which the wheel has no kernels: it has no PTX, and each run would fail."""
    if device.target == "cuda" and not (gpu.version in _MACHINE_CODE or gpu.version[0] == 8):
        raise DeviceError(
            f"device '{device}' is {gpu.name} of compute capability {gpu.capability}; onnxruntime-gpu has kernels for"
            " 7.5, 8.x, 9.0 and 12.0 only. Use device='cpu', or a build of ONNX Runtime for this GPU"
        )


def _check_libraries(device: Device) -> None:
    if missing := missing_libraries(device.target):
        raise DeviceError(
            f"device '{device}' cannot be used, libraries are missing: {'; '.join(missing)}."
            f" They come with: pip install '{_EXTRAS[device.target]}'"
        )
