"""ONNX Runtime's CUDA provider: rows of any lengths in one flat sequence without padding, decoders' in a matrix."""

from pathlib import Path

from rankrt.artifact.manifest import Layout
from rankrt.backends.gpu import ForRows, GpuBackend, memory_of, open_on
from rankrt.backends.providers import check_cudnn
from rankrt.errors import DeviceError
from rankrt.host.device import Device

# ONNX Runtime's bits for attention kernels: flash (1), memory-efficient (2) and the plain one (16). cuDNN's (8) is left
# out. From compute capability 9.0 on it would be preferred for decoders, and it compiles a plan for each new shape of a
# run, which takes 55 to 400 ms and keeps host memory.
_ATTENTION_KERNELS = 1 | 2 | 16


def open_cuda(
    graph: Path, layout: Layout, device: Device, *, n_weight_bytes: int = 0, memory_bytes: int | None = None
) -> GpuBackend:
    """Load a graph on a GPU, which may take `memory_bytes`, weights included.

    Raises DeviceError if the weights alone are more, and what `open_on` raises.
    """
    if layout == "padded":
        check_cudnn(device)  # the operator of decoders' attention asks for it, whichever kernel it takes
    if memory_bytes is not None and memory_bytes <= n_weight_bytes:
        raise DeviceError(
            f"gpu_memory_gb allows {memory_bytes / 2**30:.2f} GiB, but the weights of {graph.stem} take"
            f" {n_weight_bytes / 2**30:.2f} GiB; allow more, or use a smaller precision"
        )
    left = None if memory_bytes is None else memory_bytes - n_weight_bytes
    session = open_on(device, graph, "ORT_ENABLE_EXTENDED", cuda_settings(device, left))
    return GpuBackend([ForRows(None, session)], layout, memory_of(device))


def cuda_settings(device: Device, memory_bytes: int | None = None) -> dict[str, str]:
    """Return the provider's options; the arena for runs may take `memory_bytes`, weights apart.

    The arena doubles, as by default. One that grows by what each run asks for cannot merge its pieces. After 150 runs
    of mixed lengths it held 3,393 MB instead of 1,149. With a limit of 2 GB a run failed.
    """
    settings = {
        "sdpa_kernel": str(_ATTENTION_KERNELS),
        # 10 bits of a product's 23 otherwise, while fp32 is chosen for exact scores.
        "use_tf32": "0",
    }
    if device.index:  # for device 0 its number only brings a warning of each session
        settings["device_id"] = str(device.index)
    if memory_bytes is not None:
        settings["gpu_mem_limit"] = str(memory_bytes)
    return settings
