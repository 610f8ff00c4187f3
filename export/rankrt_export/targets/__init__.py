"""The targets: how a model is written for the library that runs it, one file each."""

from collections.abc import Callable, Mapping

from rankrt.artifact.precisions import Target
from rankrt_export.graph.blueprint import GraphOperators
from rankrt_export.graph.graph import CausalOperators, Graph, Operators, RelativeOperators, RotaryOperators
from rankrt_export.targets.cpu import CpuOperators
from rankrt_export.targets.cpu_causal import CausalCpuOperators
from rankrt_export.targets.cpu_relative import RelativeCpuOperators
from rankrt_export.targets.cpu_rotary import RotaryCpuOperators
from rankrt_export.targets.cuda import CudaOperators
from rankrt_export.targets.cuda_causal import CausalCudaOperators
from rankrt_export.targets.cuda_rotary import RotaryCudaOperators
from rankrt_export.targets.kernels import FloatKernelOperators, KernelOperators
from rankrt_export.targets.openvino import OpenVinoOperators
from rankrt_export.targets.openvino_rotary import RotaryOpenVinoOperators
from rankrt_export.targets.padded_relative import PaddedRelativeOperators
from rankrt_export.targets.portable import PortableOperators, RotaryPortableOperators
from rankrt_export.targets.segment import SegmentShape
from rankrt_export.targets.tensorrt import TensorRtOperators
from rankrt_export.targets.tensorrt_causal import CausalTensorRtOperators
from rankrt_export.targets.tensorrt_rotary import RotaryTensorRtOperators

# Of models whose attention has no kernel, rankrt's kernels compute the linear layers alone.
TARGETS: Mapping[GraphOperators, Callable[[Graph], Operators]] = {
    "cpu": CpuOperators,
    "kernels": KernelOperators,
    "float_kernels": FloatKernelOperators,
    "cuda": CudaOperators,
    "tensorrt": TensorRtOperators,
    "openvino": OpenVinoOperators,
    "portable": PortableOperators,
}
# The numbers are those of the heads, and of the features of each.
ROTARY_TARGETS: Mapping[GraphOperators, Callable[[Graph, int, int], RotaryOperators]] = {
    "cpu": RotaryCpuOperators,
    "kernels": RotaryCpuOperators,
    "float_kernels": RotaryCpuOperators,
    "cuda": RotaryCudaOperators,
    "tensorrt": RotaryTensorRtOperators,
    "openvino": RotaryOpenVinoOperators,
    "portable": RotaryPortableOperators,
}
RELATIVE_TARGETS: Mapping[GraphOperators, Callable[[Graph], RelativeOperators]] = {
    "cpu": RelativeCpuOperators,
    "kernels": RelativeCpuOperators,
    "float_kernels": RelativeCpuOperators,
    "cuda": PaddedRelativeOperators,
    "tensorrt": PaddedRelativeOperators,
}
CAUSAL_TARGETS: Mapping[Target, Callable[[Graph, SegmentShape], CausalOperators]] = {
    "cpu": CausalCpuOperators,
    "cuda": CausalCudaOperators,
    "tensorrt": CausalTensorRtOperators,
}
