"""ONNX Runtime's TensorRT provider: an engine for each length of rows, all of them built before they are needed.

The provider only ever uses the first of an engine's profiles, so there is a session for each length. Graphs are
strongly typed: no option here changes a precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankrt.artifact.manifest import Layout
from rankrt.backends.gpu import ForRows, GpuBackend, memory_of, open_on
from rankrt.backends.planner import GPU_RUN_TOKENS, PADDED_LENGTHS
from rankrt.host.device import Device

# A protobuf holds less than 2 GiB; the graph itself takes the difference.
_PROTOBUF_BYTES = 2**31 - 2**27


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The runs that one engine takes: up to so many rows of up to so many tokens."""

    n_rows: int
    longest: int

    @property
    def name(self) -> str:
        """The bucket in the names of files: rows x tokens."""
        return f"{self.n_rows}x{self.longest}"

    @property
    def profile(self) -> dict[str, str]:
        """The shapes of the inputs: the smallest, the largest, and the one that kernels are chosen for, a full run.

        The provider looks up the inputs of the graph here, so one that the graph does not have does no harm.
        """
        rows = f"{self.n_rows}x{self.longest}"
        largest = f"input_ids:{rows},token_type_ids:{rows},lengths:{self.n_rows}"
        return {
            "trt_profile_min_shapes": "input_ids:1x1,token_type_ids:1x1,lengths:1",
            "trt_profile_opt_shapes": largest,
            "trt_profile_max_shapes": largest,
        }


def buckets(max_length: int) -> tuple[Bucket, ...]:
    """Return the buckets for rows of up to max_length tokens, by ascending length."""
    lengths = [*(length for length in PADDED_LENGTHS if length < max_length), max_length]
    return tuple(Bucket(n_rows=max(1, GPU_RUN_TOKENS // length), longest=length) for length in lengths)


def tensorrt_settings(
    device: Device, bucket: Bucket, engines: Path, timings: Path, *, n_weight_bytes: int = 0
) -> dict[str, str]:
    """Return the provider's options: engines are kept in one folder, the timings of kernels in another, for all."""
    return {
        # The provider hands the graph to TensorRT as one protobuf, weights included, unless it is told to hand the
        # weights over apart.
        "trt_load_user_initializer": str(int(n_weight_bytes >= _PROTOBUF_BYTES)),
        "device_id": str(device.index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_engine_cache_prefix": bucket.name,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timings),
        **bucket.profile,
    }


def open_tensorrt(
    graph: Path,
    layout: Layout,
    device: Device,
    *,
    max_length: int,
    engines: Path,
    timings: Path,
    n_weight_bytes: int = 0,
    progress: Callable[[Bucket], None] = lambda bucket: None,
) -> GpuBackend:
    """Load a graph's engines for rows of up to max_length tokens from a folder; build those that are not there.

    Building takes minutes for each, so a caller that answers requests makes sure that they are there. `progress` is
    told each bucket that is ready. Raises DeviceError and ArtifactError as `open_on`.
    """
    opened = []
    for bucket in buckets(max_length):
        settings = tensorrt_settings(device, bucket, engines, timings, n_weight_bytes=n_weight_bytes)
        # TensorRT gets the graph that was proved, and optimises it itself. ONNX Runtime's least would put more pairs of
        # rounding to 8 bits and back around the transposes of attention, and its best operators that TensorRT lacks.
        opened.append(ForRows(bucket.longest, open_on(device, graph, "ORT_DISABLE_ALL", settings)))
        progress(bucket)
    return GpuBackend(opened, layout, memory_of(device))
