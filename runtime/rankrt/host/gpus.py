"""The NVIDIA GPUs that this process may see, asked of the driver. Knows nothing that computes on them.

CUDA's driver library is asked, not the management library: it honours CUDA_VISIBLE_DEVICES, and its numbers are
those of libraries that compute.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

# What CUDA's cuda.h calls the two attributes.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_BYTES, _VERSION_BYTES = 256, 80
# Linux, containers without /proc of the driver (gVisor), and WSL2, whose GPUs belong to Windows' driver.
_DRIVER_MARKS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")

# Opens a shared library by its name. Raises OSError.
Open: TypeAlias = Callable[[str], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU: its number, its name, its compute capability such as "9.0", and the bytes of its memory."""

    index: int
    name: str
    capability: str
    n_bytes: int

    @property
    def version(self) -> tuple[int, ...]:
        """The compute capability in numbers, to be compared."""
        return tuple(map(int, self.capability.split(".")))

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability}, {self.n_bytes / 2**30:.0f} GiB)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """What the driver says.

    found   the GPUs, by their numbers
    driver  its version, such as "580.65.06"; None where there is none or it does not say
    cuda    (major, minor) of the newest CUDA that it runs
    reason  why there is no GPU; None if there is one
    """

    found: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    reason: str | None = None


def has_driver(root: Path = Path("/")) -> bool:
    """Tell whether an NVIDIA driver is loaded, without asking it. `root` is the host's root folder.

    Asking it would initialise CUDA in this process, which then may not fork and use CUDA in the child.
    """
    return any((root / mark).exists() for mark in _DRIVER_MARKS)


def used_bytes(index: int, open_library: Open = ctypes.CDLL) -> int | None:
    """Return how much of a GPU's memory all processes use together; None where the driver does not say."""
    context, device = ctypes.c_void_p(), ctypes.c_int()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        cuda = open_library("libcuda.so.1")
        _call(cuda, "cuInit", 0)
        _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
        _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            _call(cuda, "cuCtxPushCurrent_v2", context)
            _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            _call(cuda, "cuCtxPopCurrent_v2", ctypes.byref(context))
        finally:
            _call(cuda, "cuDevicePrimaryCtxRelease_v2", device)
    except (OSError, _Refused):
        return None
    return total.value - free.value


class _Refused(Exception):
    """A call of the driver did not succeed."""


def find_gpus(open_library: Open = ctypes.CDLL) -> Gpus:
    """Ask the driver; that there is none is an answer, not an error."""
    try:
        cuda = open_library("libcuda.so.1")
    except OSError as error:
        return Gpus(reason=f"no NVIDIA driver is here ({error}); a container needs the option --gpus all")
    driver = _driver_version(open_library)
    try:
        _call(cuda, "cuInit", 0)
        version, count = ctypes.c_int(), ctypes.c_int()
        _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        found = tuple(_gpu(cuda, index) for index in range(count.value))
    except _Refused as error:
        return Gpus(driver=driver, reason=f"the NVIDIA driver refuses: {error}")
    reason = None if found else "the driver shows this process no GPU; see CUDA_VISIBLE_DEVICES"
    return Gpus(found=found, driver=driver, cuda=(version.value // 1000, version.value % 1000 // 10), reason=reason)


def _gpu(cuda: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, n_bytes = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(n_bytes), device)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        capability=f"{major.value}.{minor.value}",
        n_bytes=n_bytes.value,
    )


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    if status := getattr(cuda, function)(*arguments):
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise _Refused(f"{function} says {(text.value or b'?').decode(errors='replace')} ({status})")


def _driver_version(open_library: Open) -> str | None:
    """Return the driver's own version, which CUDA does not know; the management library does."""
    try:
        nvml = open_library("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(_VERSION_BYTES)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _VERSION_BYTES):
        return None
    return text.value.decode(errors="replace")
