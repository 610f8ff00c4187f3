"""ONNX Runtime's CUDA provider: rows of any lengths as one flat sequence, nothing padded."""

from pathlib import Path

from rankrt.artifact import Layout
from rankrt.backends.gpu import ForRows, GpuBackend, memory_of, open_on
from rankrt.devices import Device


def open_cuda(graph: Path, layout: Layout, device: Device, *, memory_bytes: int | None = None) -> GpuBackend:
    """Load a graph on a GPU. Raises DeviceError and ArtifactError as `open_on`."""
    session = open_on(device, graph, "ORT_ENABLE_EXTENDED", cuda_settings(device, memory_bytes))
    return GpuBackend([ForRows(None, session)], layout, memory_of(device))


def cuda_settings(device: Device, memory_bytes: int | None = None) -> dict[str, str]:
    """Return the provider's options.

    Attention needs none: PackedMultiHeadAttention takes its flash kernel by itself where there is one for the type.
    """
    settings = {
        "device_id": str(device.index),
        # By default the arena doubles; so it grows by what a run needs, and what it has is what the largest run needed.
        "arena_extend_strategy": "kSameAsRequested",
        # 10 bits of a product's 23 otherwise: fp32 is here for those who want it exact.
        "use_tf32": "0",
    }
    return settings if memory_bytes is None else settings | {"gpu_mem_limit": str(memory_bytes)}
