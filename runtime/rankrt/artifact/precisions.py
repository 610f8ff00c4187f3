"""The targets and precisions that a variant may have, one row each: all that is known of them before a model is seen.

A new precision is a row here, and a file in the export's `precision/` that writes it. Nothing else names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Target: TypeAlias = Literal["cpu", "cuda", "tensorrt"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "w8", "int8", "fp8", "int4"]
# The library that computes on a CPU.
CpuLibrary: TypeAlias = Literal["onnxruntime", "openvino"]
# Whose operators a graph has: its target's, or on a CPU OpenVINO's or rankrt's own, which are in floats throughout or
# have attention in integers.
OperatorsName: TypeAlias = Target | Literal["openvino", "kernels", "float_kernels"]
# Whose instructions a graph on a CPU is made of. "kernels" are those of rankrt's own library, which looks for the best
# of the processor itself. The others are how ONNX Runtime adds products of bytes: "vnni" four at once in 32 bits;
# "avx2" two at once in 16 bits, which saturate, so that a graph for it halves the weights.
InstructionSet: TypeAlias = Literal["kernels", "vnni", "avx2"]
# What a caller may ask for: one of them, or the graph that needs none.
AskedSet: TypeAlias = InstructionSet | Literal["any"]

# From the fastest to the one that every processor has.
INSTRUCTION_SETS: tuple[InstructionSet, ...] = ("kernels", "vnni", "avx2")
ASKED_SETS: tuple[AskedSet, ...] = (*INSTRUCTION_SETS, "any")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """A way to compute.

    is_gpu         whether it is a GPU's
    builds_engines whether a host has to build TensorRT engines from the graph before it can score
    bounds_memory  whether its memory can be limited
    has_exits      whether a layerwise model has a graph for each exit; otherwise one graph, which ends at the last
    unquantized    the precision of the layers that a calibrated variant leaves as they are
    """

    is_gpu: bool
    builds_engines: bool = False
    bounds_memory: bool = False
    has_exits: bool = False
    unquantized: Precision


# GPU targets are tried in this order: flat rows without padding first, then engines, which have to be built.
TARGETS: Mapping[Target, TargetRow] = {
    "cpu": TargetRow(is_gpu=False, has_exits=True, unquantized="fp32"),
    "cuda": TargetRow(is_gpu=True, bounds_memory=True, unquantized="fp16"),
    "tensorrt": TargetRow(is_gpu=True, builds_engines=True, unquantized="fp16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRow:
    """A way to store weights and to multiply by them.

    help               what it is, in a few words
    targets            those that it can be exported for
    rank_on_cpu, rank_on_gpu   "auto" takes the verified variant with the lowest
    max_difference     how far a logit may be from PyTorch's, unless the user says otherwise
    min_tau            the smallest mean Kendall's tau of a query, unless the user says otherwise
    is_exact           only the order of sums differs from PyTorch: its limits are fixed, and nothing is more exact
    is_calibrated      text decides how its layers are rounded, and which stay as they are
    instruction_sets   those that it has a graph for on a CPU, the fastest first; None is for any processor
    needs_fast_bytes   on a CPU it is slower than fp32 without fast products of bytes
    cpu_library      the library that computes it on a CPU
    is_measured_on_cpu   "auto" takes it on a CPU only if `rankrt prepare` measured there that it is faster than fp32
    stored_as          the precision whose data files it shares, if that is another
    least_capability   the compute capability from which on a GPU multiplies its numbers
    bytes_per_weight   in the data files
    bytes_in_memory    of a weight that ONNX Runtime has loaded on a CPU
    prepared_growth    the size of a prepared model, relative to the variant's files
    """

    help: str
    targets: tuple[Target, ...]
    rank_on_cpu: int
    rank_on_gpu: int
    max_difference: float
    min_tau: float
    is_exact: bool = False
    is_calibrated: bool = False
    instruction_sets: tuple[InstructionSet | None, ...] = (None,)
    needs_fast_bytes: bool = False
    cpu_library: CpuLibrary = "onnxruntime"
    is_measured_on_cpu: bool = False
    stored_as: Precision | None = None
    least_capability: tuple[int, int] = (0, 0)
    bytes_per_weight: float
    bytes_in_memory: float
    prepared_growth: float


# From the most to the least faithful.
#
# Ranks on a CPU: int8 within its limits was exported for its speed; bf16 comes next, where it was measured; fp16 is
# fp32 with rounded weights; w8 and int4 are for hosts that lack memory.
#
# On a GPU: fp16 is what its matrix units are made for. int8 comes after fp32, as it drifts more and no measurement
# shows yet that it is faster. Others found XLM-R no faster than in fp16, as TensorRT did not fuse attention next to
# 8 bits (Model Optimizer's issue 59).
#
# Growth: packed copies stand beside the originals. 1.53 and 2.6 times the artifact were measured with 568 M parameters.
PRECISIONS: Mapping[Precision, PrecisionRow] = {
    # Limits: 5.5e-5 was measured with 24 random layers of XLM-R-large, which amplify more than trained ones.
    "fp32": PrecisionRow(
        help="as trained",
        targets=("cpu", "cuda", "tensorrt"),
        rank_on_cpu=3,
        rank_on_gpu=2,
        max_difference=1e-4,
        min_tau=0.99,
        is_exact=True,
        instruction_sets=("kernels", None),
        bytes_per_weight=4,
        bytes_in_memory=4,
        prepared_growth=1.6,
    ),
    # Limits: weights of 11 bits differed by 0.071 there, by 0.035 with a small trained model. Memory: ONNX Runtime
    # widens them when it loads.
    "fp16": PrecisionRow(
        help="half precision",
        targets=("cpu", "cuda", "tensorrt"),
        rank_on_cpu=4,
        rank_on_gpu=1,
        max_difference=0.25,
        min_tau=0.97,
        bytes_per_weight=2,
        bytes_in_memory=4,
        prepared_growth=2.7,
    ),
    # The artifact holds fp32. OpenVINO rounds weights and all states to 8 bits, sums of layers too. Limits: a small
    # trained model differed by 0.47, with a mean tau of 0.964. Memory: the packed weights. Those in the files are
    # mapped and shared.
    "bf16": PrecisionRow(
        help="brain floats, by OpenVINO",
        targets=("cpu",),
        rank_on_cpu=2,
        rank_on_gpu=7,
        max_difference=1.0,
        min_tau=0.95,
        cpu_library="openvino",
        is_measured_on_cpu=True,
        stored_as="fp32",
        bytes_per_weight=4,
        bytes_in_memory=2,
        prepared_growth=0,
    ),
    "w8": PrecisionRow(
        help="8-bit weights only",
        targets=("cpu",),
        rank_on_cpu=5,
        rank_on_gpu=5,
        max_difference=0.25,
        min_tau=0.97,
        bytes_per_weight=1.16,
        bytes_in_memory=1.16,
        prepared_growth=1.7,
    ),
    "int8": PrecisionRow(
        help="8-bit weights and products",
        targets=("cpu", "tensorrt"),
        rank_on_cpu=1,
        rank_on_gpu=3,
        max_difference=0.25,
        min_tau=0.97,
        is_calibrated=True,
        instruction_sets=INSTRUCTION_SETS,
        needs_fast_bytes=True,
        bytes_per_weight=1.04,
        bytes_in_memory=1.04,
        prepared_growth=1.7,
    ),
    # GPUs multiply 8-bit floats from Ada and Hopper on. Weights: tables are in half precision. Memory: a CPU, which
    # verifies the graph, widens all of it.
    "fp8": PrecisionRow(
        help="8-bit floats",
        targets=("tensorrt",),
        rank_on_cpu=7,
        rank_on_gpu=4,
        max_difference=0.25,
        min_tau=0.97,
        is_calibrated=True,
        least_capability=(8, 9),
        bytes_per_weight=2,
        bytes_in_memory=4,
        prepared_growth=1.7,
    ),
    # Limits: for hosts where nothing else fits. 16 values for a weight cost what they cost, and the manifest says it.
    "int4": PrecisionRow(
        help="4-bit weights only",
        targets=("cpu",),
        rank_on_cpu=6,
        rank_on_gpu=6,
        max_difference=2.0,
        min_tau=0.8,
        bytes_per_weight=1.04,
        bytes_in_memory=1.04,
        prepared_growth=1.7,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantKey:
    """Which variant of a model. Without an instruction set it is for any processor."""

    target: Target
    precision: Precision
    instruction_set: InstructionSet | None = None

    def __str__(self) -> str:
        """Return the name of the variant, such as cpu-fp32 or cpu-int8-vnni."""
        return "-".join(filter(None, (self.target, self.precision, self.instruction_set)))

    @property
    def row(self) -> PrecisionRow:
        """The row of its precision."""
        return PRECISIONS[self.precision]

    @property
    def is_for_openvino(self) -> bool:
        """Whether OpenVINO runs it, not ONNX Runtime."""
        return self.target == "cpu" and self.row.cpu_library == "openvino"

    @property
    def needs_kernels(self) -> bool:
        """Whether its graph has operators of rankrt's own."""
        return self.instruction_set == "kernels"

    @property
    def asked_set(self) -> AskedSet | None:
        """How a caller asks for it and no other in its precision; None on a GPU, which has one for each precision."""
        return self.instruction_set or ("any" if self.target == "cpu" else None)

    @property
    def rounded_as(self) -> "VariantKey":
        """The variant whose weights and activations are rounded as its own are: for kernels that for VNNI."""
        return replace(self, instruction_set="vnni") if self.needs_kernels else self

    @property
    def operators(self) -> OperatorsName:
        """Whose operators its graph has."""
        if self.needs_kernels:
            return "float_kernels" if self.row.is_exact else "kernels"
        return "openvino" if self.is_for_openvino else self.target


def variant_keys(target: Target, precision: Precision) -> tuple[VariantKey, ...]:
    """Return the variants of a target in a precision, the fastest first: on a CPU one for each instruction set."""
    sets = PRECISIONS[precision].instruction_sets if target == "cpu" else (None,)
    return tuple(VariantKey(target=target, precision=precision, instruction_set=name) for name in sets)


def rank(precision: Precision, target: Target) -> int:
    """Return the place of a precision in the order in which "auto" looks at the variants for a target."""
    row = PRECISIONS[precision]
    return row.rank_on_gpu if TARGETS[target].is_gpu else row.rank_on_cpu
