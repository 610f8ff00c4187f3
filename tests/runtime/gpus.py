"""GPUs that are not there: a driver and an onnxruntime that say what a test wants, and the CPU in their place."""

import ctypes
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from rankrt.backends import providers
from rankrt.host.device import Device
from rankrt.host.gpus import Gpu, Gpus
from rankrt.host.host import this_host
from rankrt.loading.choose import place_on_gpu
from rankrt.loading.placement import Placement, Record
from rankrt.loading.prepare import prepare_for_gpu

DRIVER = "580.65.06"


def gpus(*names: str, cuda: tuple[int, int] = (13, 0)) -> Gpus:
    """What the driver would say of GPUs of these names."""
    found = [Gpu(index=i, name=name, capability="9.0", n_bytes=80 << 30) for i, name in enumerate(names)]
    reason = None if names else "the driver shows this process no GPU"
    return Gpus(found=tuple(found), driver=DRIVER, cuda=cuda, reason=reason)


def show(monkeypatch: pytest.MonkeyPatch, found: Gpus) -> None:
    """Let the driver say this, and that 3 GiB more are used each time it is asked."""
    monkeypatch.setattr("rankrt.host.gpus.find_gpus", lambda: found)
    monkeypatch.setattr("rankrt.host.gpus.has_driver", lambda: True)
    used = iter(range(0, 1 << 40, 3 << 30))
    monkeypatch.setattr("rankrt.host.gpus.used_bytes", lambda index: next(used))


def compute_on_the_cpu(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that these GPUs are there; what is to run on one runs on the CPU, by the same way through the house."""
    show(monkeypatch, gpus(*names))
    for target in ("cuda", "tensorrt"):
        monkeypatch.setitem(providers.PROVIDERS, target, providers.PROVIDERS["cpu"])


def placed(artifact: Artifact, device: Device, precision: Precision | Literal["auto"] = "auto") -> list[Placement]:
    """Return the variants of an artifact for a GPU of this host, best first."""
    return place_on_gpu(artifact, device, precision, this_host())


def prepare_all(artifact: Artifact, device: Device, **options: Any) -> list[Record]:
    """Prepare all variants of an artifact for a GPU of this host."""
    return [prepare_for_gpu(placement, **options) for placement in placed(artifact, device)]


class Driver:
    """CUDA's driver library and the management library, as ctypes has them."""

    def __init__(self, *names: str, status: int = 0) -> None:
        self._names = names
        self._status = status

    def __call__(self, library: str) -> "Driver":
        return self

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13_000
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = self._names[device.value].encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, n_bytes: Any, device: ctypes.c_int) -> int:
        n_bytes._obj.value = 80 << 30
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> int:
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: ctypes.c_int) -> int:
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 78 << 30, 80 << 30
        return 0

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = DRIVER.encode()
        return 0


def onnxruntime(*found: str, cuda: str = "13.0", says: str = "", file: str = "/nowhere/onnxruntime/__init__.py") -> Any:
    """A module with these providers, which prints this when it loads CUDA's libraries."""

    def preload_dlls() -> None:
        print(says)

    return SimpleNamespace(
        get_available_providers=lambda: [*found, "CPUExecutionProvider"],
        cuda_version=cuda,
        preload_dlls=preload_dlls,
        __file__=file,
        __version__="1.31.1",
    )


def install(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Let this be the onnxruntime that is installed, with no library loaded yet."""
    monkeypatch.setattr(providers, "import_onnxruntime", lambda: module)
    providers._missing_cuda_libraries.cache_clear()
    providers._missing_tensorrt_libraries.cache_clear()
