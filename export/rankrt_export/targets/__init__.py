"""The targets: how a model is written for an engine, one file each."""

from collections.abc import Callable, Mapping

from rankrt.artifact.manifest import Target
from rankrt_export.graph.graph import CausalEngine, Engine, Graph, RotaryEngine
from rankrt_export.targets.cpu import CpuEngine
from rankrt_export.targets.cpu_causal import CausalCpuEngine
from rankrt_export.targets.cpu_rotary import RotaryCpuEngine
from rankrt_export.targets.cuda import CudaEngine
from rankrt_export.targets.cuda_causal import CausalCudaEngine
from rankrt_export.targets.segment import SegmentShape
from rankrt_export.targets.tensorrt import TensorRtEngine
from rankrt_export.targets.tensorrt_causal import CausalTensorRtEngine

TARGETS: Mapping[Target, Callable[[Graph], Engine]] = {
    "cpu": CpuEngine,
    "cuda": CudaEngine,
    "tensorrt": TensorRtEngine,
}
ROTARY_TARGETS: Mapping[Target, Callable[[Graph], RotaryEngine]] = {
    "cpu": RotaryCpuEngine,
}
CAUSAL_TARGETS: Mapping[Target, Callable[[Graph, SegmentShape], CausalEngine]] = {
    "cpu": CausalCpuEngine,
    "cuda": CausalCudaEngine,
    "tensorrt": CausalTensorRtEngine,
}
