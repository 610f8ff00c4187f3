"""The targets: how a model is written for an engine, one file each."""

from collections.abc import Callable, Mapping

from rankrt.artifact.precisions import Target
from rankrt_export.graph.blueprint import GraphOperators
from rankrt_export.graph.graph import CausalEngine, Engine, Graph, RelativeEngine, RotaryEngine
from rankrt_export.targets.cpu import CpuEngine
from rankrt_export.targets.cpu_causal import CausalCpuEngine
from rankrt_export.targets.cpu_relative import RelativeCpuEngine
from rankrt_export.targets.cpu_rotary import RotaryCpuEngine
from rankrt_export.targets.cuda import CudaEngine
from rankrt_export.targets.cuda_causal import CausalCudaEngine
from rankrt_export.targets.cuda_rotary import RotaryCudaEngine
from rankrt_export.targets.openvino import OpenVinoEngine
from rankrt_export.targets.openvino_rotary import RotaryOpenVinoEngine
from rankrt_export.targets.padded_relative import PaddedRelativeEngine
from rankrt_export.targets.portable import PortableEngine, RotaryPortableEngine
from rankrt_export.targets.segment import SegmentShape
from rankrt_export.targets.tensorrt import TensorRtEngine
from rankrt_export.targets.tensorrt_causal import CausalTensorRtEngine
from rankrt_export.targets.tensorrt_rotary import RotaryTensorRtEngine

TARGETS: Mapping[GraphOperators, Callable[[Graph], Engine]] = {
    "cpu": CpuEngine,
    "cuda": CudaEngine,
    "tensorrt": TensorRtEngine,
    "openvino": OpenVinoEngine,
    "portable": PortableEngine,
}
# The numbers are those of the heads, and of the features of each.
ROTARY_TARGETS: Mapping[GraphOperators, Callable[[Graph, int, int], RotaryEngine]] = {
    "cpu": RotaryCpuEngine,
    "cuda": RotaryCudaEngine,
    "tensorrt": RotaryTensorRtEngine,
    "openvino": RotaryOpenVinoEngine,
    "portable": RotaryPortableEngine,
}
RELATIVE_TARGETS: Mapping[GraphOperators, Callable[[Graph], RelativeEngine]] = {
    "cpu": RelativeCpuEngine,
    "cuda": PaddedRelativeEngine,
    "tensorrt": PaddedRelativeEngine,
}
CAUSAL_TARGETS: Mapping[Target, Callable[[Graph, SegmentShape], CausalEngine]] = {
    "cpu": CausalCpuEngine,
    "cuda": CausalCudaEngine,
    "tensorrt": CausalTensorRtEngine,
}
