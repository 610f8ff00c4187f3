"""`rankrt export`, one precision at a time, verified as by default."""

from pathlib import Path

from rankrt.artifact.precisions import Precision
from rankrt_export.errors import VerificationError
from rankrt_export.pipeline import Options, export


def fp32(checkpoint: Path, out: Path) -> None:
    _export(checkpoint, out, "fp32")


def fp16(checkpoint: Path, out: Path) -> None:
    _export(checkpoint, out, "fp16")


def bf16(checkpoint: Path, out: Path) -> None:
    _export(checkpoint, out, "bf16")


def gpu(checkpoint: Path, out: Path) -> None:
    """Write the graphs for GPUs. `rankrt build` on a GPU verifies CUDA's; otherwise name their precision."""
    export(str(checkpoint), out, Options(precisions=["fp32", "fp16"], targets=["cuda", "tensorrt"]))


def int8(checkpoint: Path, out: Path) -> None:
    """Export within the default limits. Random weights cannot meet them, so all layers are exported, for speed."""
    try:
        _export(checkpoint, out, "int8")
    except VerificationError as error:
        print(f"without limits: {error}")
        export(str(checkpoint), out, Options(precisions=["int8"], max_difference=1e9, min_tau=-1.0))


def _export(checkpoint: Path, out: Path, precision: Precision) -> None:
    export(str(checkpoint), out, Options(precisions=[precision]))
