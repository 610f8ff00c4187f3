"""Devices: how they are written, which GPUs the driver shows, and every reason why one cannot be had."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rankrt import DeviceError, InputError
from rankrt.backends import providers
from rankrt.backends.cuda import open_cuda
from rankrt.backends.providers import gpu_for, tensorrt_libraries, tensorrt_library
from rankrt.host.device import Device
from rankrt.host.gpus import find_gpus, has_driver, used_bytes
from rankrt.host.host import this_host
from tests.runtime.gpus import DRIVER, Driver, gpus, install, onnxruntime, show

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    yield
    providers._missing_cuda_libraries.cache_clear()
    providers._missing_tensorrt_libraries.cache_clear()


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", None),
        ("cpu", Device("cpu")),
        ("cuda", Device("cuda", 0)),
        ("cuda:1", Device("cuda", 1)),
        ("tensorrt", Device("tensorrt", 0)),
        ("tensorrt:12", Device("tensorrt", 12)),
    ],
)
def test_a_device_is_read_as_it_is_written(text: str, device: Device | None):
    assert Device.parse(text) == device
    assert device is None or Device.parse(str(device)) == device


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "cuda:1 ", None, 0])
def test_anything_else_is_refused(text):
    with pytest.raises(InputError, match="expected 'auto', 'cpu', 'cuda', 'tensorrt', or one with a GPU's number"):
        Device.parse(text)


def test_the_driver_is_asked_for_its_gpus():
    found = find_gpus(Driver("NVIDIA H100", "NVIDIA L4"))
    assert [(gpu.index, gpu.name, gpu.capability) for gpu in found.found] == [
        (0, "NVIDIA H100", "9.0"),
        (1, "NVIDIA L4", "9.0"),
    ]
    assert (found.driver, found.cuda, found.reason) == (DRIVER, (13, 0), None)
    assert str(found.found[0]) == "NVIDIA H100 (compute capability 9.0, 80 GiB)"


@pytest.mark.parametrize("mark", ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg"], ids=["", "gVisor", "WSL2"])
def test_a_driver_is_noticed_without_being_asked(tmp_path: Path, mark: str):
    assert not has_driver(tmp_path)
    (tmp_path / mark).parent.mkdir(parents=True)
    (tmp_path / mark).touch()
    assert has_driver(tmp_path)


def test_the_driver_says_how_much_memory_is_used():
    assert used_bytes(0, Driver("NVIDIA H100")) == 2 << 30
    assert used_bytes(0, Driver(status=100)) is None


def test_a_host_without_a_driver_says_so():
    def open_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert find_gpus(open_library).reason == (
        "no NVIDIA driver is here (libcuda.so.1: cannot open shared object file);"
        " a container needs the option --gpus all"
    )


def test_a_driver_that_refuses_is_quoted():
    found = find_gpus(Driver(status=100))
    assert found.reason == "the NVIDIA driver refuses: cuInit says no CUDA-capable device is detected (100)"
    assert found.driver == DRIVER


def test_a_process_that_sees_no_gpu_is_told_where_to_look():
    assert "CUDA_VISIBLE_DEVICES" in (find_gpus(Driver()).reason or "")


@pytest.mark.parametrize(("device", "provider", "extra"), [("cuda", CUDA, "gpu"), ("tensorrt", TENSORRT, "tensorrt")])
def test_the_build_for_the_cpu_names_the_pip_commands(monkeypatch, device: str, provider: str, extra: str):
    install(monkeypatch, onnxruntime())
    with pytest.raises(DeviceError, match=rf"needs {provider}, which .* does not have.*pip uninstall onnxruntime") as e:
        gpu_for(Device.parse(device), this_host())  # type: ignore[arg-type]
    assert str(e.value).endswith(f"pip install 'rankrt[{extra}]'")


def test_without_a_gpu_the_driver_s_reason_is_given(monkeypatch):
    install(monkeypatch, onnxruntime(CUDA))
    show(monkeypatch, gpus())
    with pytest.raises(DeviceError, match="device 'cuda:0' needs an NVIDIA GPU: the driver shows this process no GPU"):
        gpu_for(Device("cuda"), this_host())


def test_a_number_that_is_not_there_shows_those_that_are(monkeypatch):
    install(monkeypatch, onnxruntime(CUDA))
    show(monkeypatch, gpus("NVIDIA H100", "NVIDIA L4"))
    with pytest.raises(DeviceError, match="'cuda:2' is not there; this process sees 0: NVIDIA H100, 1: NVIDIA L4"):
        gpu_for(Device("cuda", 2), this_host())


def test_a_driver_that_is_too_old_is_named(monkeypatch):
    install(monkeypatch, onnxruntime(CUDA, cuda="13.0"))
    show(monkeypatch, gpus("NVIDIA H100", cuda=(12, 4)))
    with pytest.raises(DeviceError, match=r"built for CUDA 13, but the driver 580\.65\.06 runs CUDA up to 12\.4"):
        gpu_for(Device("cuda"), this_host())


def test_libraries_that_cannot_be_loaded_are_named_in_the_loader_s_words(monkeypatch, capsys):
    words = "libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file: No such file or directory"
    install(monkeypatch, onnxruntime(CUDA, says=f"Failed to load {words}\nPlease follow ..."))
    show(monkeypatch, gpus("NVIDIA H100"))
    with pytest.raises(DeviceError, match=r"libraries are missing: libcublasLt.so.13: .*pip install 'rankrt\[gpu\]'"):
        gpu_for(Device("cuda"), this_host())
    assert capsys.readouterr().out == "", "what onnxruntime prints is for us"


@pytest.mark.parametrize("capability", ["7.0", "10.0", "10.3", "12.1"])
def test_a_gpu_without_kernels_in_the_wheel_is_refused(monkeypatch, capability: str):
    found = gpus("NVIDIA B200")
    install(monkeypatch, onnxruntime(CUDA))
    show(monkeypatch, replace(found, found=(replace(found.found[0], capability=capability),)))
    with pytest.raises(DeviceError, match=rf"B200 of compute capability {capability}; .* kernels for 7\.5, 8\.x"):
        gpu_for(Device("cuda"), this_host())


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "12.0"])
def test_a_gpu_with_kernels_in_the_wheel_is_taken(monkeypatch, capability: str):
    found = gpus("A GPU")
    install(monkeypatch, onnxruntime(CUDA))
    show(monkeypatch, replace(found, found=(replace(found.found[0], capability=capability),)))
    assert gpu_for(Device("cuda"), this_host()).capability == capability


def test_a_decoder_without_cudnn_is_refused_when_it_is_loaded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(providers, "_cannot_load", lambda library: f"{library}: cannot open shared object file")
    with pytest.raises(DeviceError, match=r"without cuDNN: libcudnn\.so\.9: .*pip install 'rankrt\[gpu\]'"):
        open_cuda(tmp_path / "cuda-fp16.onnx", "padded", Device("cuda"))


def test_the_libraries_of_tensorrt_are_those_that_the_provider_links(monkeypatch, tmp_path: Path):
    (tmp_path / "capi").mkdir()
    provider = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    provider.write_bytes(b"\x7fELF\0libnvinfer.so.10\0libnvonnxparser.so.10\0libcudnn.so.9\0libnvinfer.so.10\0")
    install(monkeypatch, onnxruntime(CUDA, TENSORRT, file=str(tmp_path / "__init__.py")))
    show(monkeypatch, gpus("NVIDIA H100"))
    assert tensorrt_libraries() == ["libcudnn.so.9", "libnvinfer.so.10", "libnvonnxparser.so.10"]
    assert tensorrt_library() == "libnvinfer.so.10"
    with pytest.raises(DeviceError, match=r"libnvinfer\.so\.10: cannot open .*pip install 'rankrt\[tensorrt\]'"):
        gpu_for(Device("tensorrt"), this_host())
    assert gpu_for(Device("cuda"), this_host()).name == "NVIDIA H100", "CUDA needs none of them"
