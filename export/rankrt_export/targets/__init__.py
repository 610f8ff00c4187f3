"""How a model is expressed for an engine, one file each."""

from collections.abc import Callable, Mapping

from rankrt.artifact import Target
from rankrt_export.graph import CausalRows, Engine, Graph
from rankrt_export.targets.cpu import CpuEngine
from rankrt_export.targets.cpu_causal import CausalPackedRows, SegmentShape
from rankrt_export.targets.cuda import CudaEngine
from rankrt_export.targets.tensorrt import TensorRtEngine

TARGETS: Mapping[Target, Callable[[Graph], Engine]] = {
    "cpu": CpuEngine,
    "cuda": CudaEngine,
    "tensorrt": TensorRtEngine,
}
CAUSAL_TARGETS: Mapping[Target, Callable[[Graph, SegmentShape], CausalRows]] = {"cpu": CausalPackedRows}
