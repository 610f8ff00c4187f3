"""The systems, one file each. Each is loaded in a process and an environment of its own.

To add a system, write an entry in `SYSTEMS` and a class with the methods of `System`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol


class System(Protocol):
    """A system with a model loaded.

    Its constructor takes the model's folder, a thread budget, and the device if that is not "cpu".
    """

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the parts that compute."""
        ...

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        """Return the logit of each passage, in order. Without a batch size the system uses its default."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A system's class, environment, input and batch sizes.

    place        module:class; "" for a server, which the load suite can start
    environment  a file in locks/; "" is the harness's own
    given        a name in CONVERSIONS, or "" for the checkpoint itself
    batch_sizes  the choices of "at its best"; empty if a system has none
    devices      the devices that it can use; empty if unknown, for a system of yours
    """

    place: str
    environment: str
    given: str = ""
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    devices: tuple[str, ...] = ("cpu",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The conversion of a checkpoint for a system. It starts from the conversion `of`, or "" for none."""

    place: str
    environment: str
    of: str = ""


_TORCH_DEVICES = ("cpu", "cuda")
_RANKRT_DEVICES = ("cpu", "cuda", "tensorrt")
SYSTEMS: Mapping[str, Entry] = {
    "rankrt-fp32": Entry(
        place="benchmarks.systems.rankrt:Float32",
        environment="rankrt",
        given="rankrt",
        batch_sizes=(),
        devices=_RANKRT_DEVICES,
    ),
    "rankrt-int8": Entry(
        place="benchmarks.systems.rankrt:Int8", environment="rankrt", given="rankrt-int8", batch_sizes=()
    ),
    "rankrt-avx2-int8": Entry(
        place="benchmarks.systems.rankrt:Int8Avx2", environment="rankrt", given="rankrt-int8", batch_sizes=()
    ),
    "rankrt-bf16": Entry(
        place="benchmarks.systems.rankrt:Bfloat16", environment="rankrt-openvino", given="rankrt-bf16", batch_sizes=()
    ),
    "rankrt-fp16": Entry(
        place="benchmarks.systems.rankrt:Float16",
        environment="rankrt",
        given="rankrt-fp16",
        batch_sizes=(),
        devices=_RANKRT_DEVICES,
    ),
    "torch-eager": Entry(place="benchmarks.systems.pytorch:Eager", environment="torch", devices=_TORCH_DEVICES),
    "torch-sdpa": Entry(place="benchmarks.systems.pytorch:Sdpa", environment="torch", devices=_TORCH_DEVICES),
    "torch-compile": Entry(place="benchmarks.systems.pytorch:Compiled", environment="torch", devices=_TORCH_DEVICES),
    "torch-bf16": Entry(place="benchmarks.systems.pytorch:Bfloat16", environment="torch", devices=_TORCH_DEVICES),
    "torch-int8": Entry(place="benchmarks.systems.pytorch:DynamicInt8", environment="torch"),
    "torch-fp16": Entry(place="benchmarks.systems.pytorch:Float16", environment="torch", devices=("cuda",)),
    "torch-compiled-fp16": Entry(
        place="benchmarks.systems.pytorch:CompiledFloat16", environment="torch", devices=("cuda",)
    ),
    "sentence-transformers-torch": Entry(
        place="benchmarks.systems.sentence_transformers:Torch",
        environment="sentence-transformers",
        devices=_TORCH_DEVICES,
    ),
    "sentence-transformers-onnx": Entry(
        place="benchmarks.systems.sentence_transformers:Onnx",
        environment="sentence-transformers-onnx",
        given="sentence-transformers-onnx",
    ),
    "sentence-transformers-openvino": Entry(
        place="benchmarks.systems.sentence_transformers:OpenVino",
        environment="sentence-transformers-openvino",
        given="sentence-transformers-openvino",
    ),
    "flagembedding-shipped": Entry(place="benchmarks.systems.flagembedding:AsShipped", environment="flagembedding"),
    "flagembedding-no-probe": Entry(place="benchmarks.systems.flagembedding:WithoutProbe", environment="flagembedding"),
    "optimum-exported": Entry(
        place="benchmarks.systems.optimum:Optimum", environment="optimum", given="onnx", devices=_TORCH_DEVICES
    ),
    "optimum-o3": Entry(place="benchmarks.systems.optimum:Optimum", environment="optimum", given="onnx-o3"),
    "onnxruntime-int8": Entry(place="benchmarks.systems.optimum:Optimum", environment="optimum", given="onnx-int8"),
    "openvino-fp32": Entry(place="benchmarks.systems.openvino:OpenVino", environment="openvino", given="openvino"),
    "openvino-int8": Entry(place="benchmarks.systems.openvino:OpenVino", environment="openvino", given="openvino-int8"),
    "fastembed": Entry(place="benchmarks.systems.fastembed:Fastembed", environment="fastembed", given="onnx"),
    "llama.cpp-f16": Entry(place="benchmarks.systems.llama_cpp:LlamaCpp", environment="llama.cpp", given="gguf"),
    "llama.cpp-q8": Entry(place="benchmarks.systems.llama_cpp:LlamaCpp", environment="llama.cpp", given="gguf-q8"),
    "infinity": Entry(place="", environment="infinity"),
}

# The differences on a GPU: environments with ONNX Runtime's build for it, and an artifact with graphs for it. PyTorch's
# wheels are for both.
_ON_GPU: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("rankrt-fp32", "cuda"): {"environment": "rankrt-cuda", "given": "rankrt-gpu"},
    ("rankrt-fp16", "cuda"): {"environment": "rankrt-cuda", "given": "rankrt-gpu"},
    ("rankrt-fp32", "tensorrt"): {"environment": "rankrt-tensorrt", "given": "rankrt-gpu"},
    ("rankrt-fp16", "tensorrt"): {"environment": "rankrt-tensorrt", "given": "rankrt-gpu"},
    ("optimum-exported", "cuda"): {"environment": "optimum-cuda"},
}

CONVERSIONS: Mapping[str, Conversion] = {
    "rankrt": Conversion(place="benchmarks.systems.rankrt_export:fp32", environment="rankrt-export"),
    "rankrt-int8": Conversion(place="benchmarks.systems.rankrt_export:int8", environment="rankrt-export"),
    "rankrt-bf16": Conversion(place="benchmarks.systems.rankrt_export:bf16", environment="rankrt-export"),
    "rankrt-fp16": Conversion(place="benchmarks.systems.rankrt_export:fp16", environment="rankrt-export"),
    "rankrt-gpu": Conversion(place="benchmarks.systems.rankrt_export:gpu", environment="rankrt-export"),
    "sentence-transformers-onnx": Conversion(
        place="benchmarks.systems.sentence_transformers:to_onnx", environment="sentence-transformers-onnx"
    ),
    "sentence-transformers-openvino": Conversion(
        place="benchmarks.systems.sentence_transformers:to_openvino", environment="sentence-transformers-openvino"
    ),
    "onnx": Conversion(place="benchmarks.systems.optimum:export", environment="optimum"),
    "onnx-o3": Conversion(place="benchmarks.systems.optimum:optimize", environment="optimum", of="onnx"),
    "onnx-int8": Conversion(place="benchmarks.systems.optimum:quantize", environment="optimum", of="onnx"),
    "openvino": Conversion(place="benchmarks.systems.openvino:convert", environment="openvino"),
    "openvino-int8": Conversion(place="benchmarks.systems.openvino:quantize", environment="openvino", of="openvino"),
    "gguf": Conversion(place="benchmarks.systems.llama_cpp:to_f16", environment="llama.cpp"),
    "gguf-q8": Conversion(place="benchmarks.systems.llama_cpp:to_q8", environment="llama.cpp"),
}

# The LLM rerankers' systems have names of their own. In an encoder's run "flagembedding" would select all of them.
DECODERS: Mapping[str, Entry] = {
    "llm-rankrt": Entry(place="benchmarks.systems.decoders:Float32", environment="rankrt", batch_sizes=()),
    "llm-rankrt-unshared": Entry(place="benchmarks.systems.decoders:Unshared", environment="rankrt", batch_sizes=()),
    "llm-rankrt-w8": Entry(place="benchmarks.systems.decoders:Weights8", environment="rankrt", batch_sizes=()),
    "llm-rankrt-int8": Entry(place="benchmarks.systems.decoders:Int8", environment="rankrt", batch_sizes=()),
    "llm-rankrt-int4": Entry(place="benchmarks.systems.decoders:Int4", environment="rankrt", batch_sizes=()),
    "llm-flagembedding": Entry(
        place="benchmarks.systems.flagembedding_llm:WithoutProbe", environment="flagembedding", batch_sizes=(1, 4)
    ),
}

# Servers that are compiled once, from sources in an environment.
PROGRAMS: Mapping[str, Conversion] = {
    "llama-server": Conversion(place="benchmarks.systems.llama_cpp:build_server", environment="llama.cpp"),
}

# Systems that answer the machine's own rates instead of scores.
CEILINGS: Mapping[str, Entry] = {
    "sgemm": Entry(place="benchmarks.systems.ceilings:Sgemm", environment="rankrt-export", batch_sizes=()),
    "sgemm-from-memory": Entry(
        place="benchmarks.systems.ceilings:SgemmFromMemory", environment="rankrt-export", batch_sizes=()
    ),
    "bandwidth": Entry(place="benchmarks.systems.ceilings:Bandwidth", environment="rankrt-export", batch_sizes=()),
    "gemm-fp16": Entry(place="benchmarks.systems.pytorch:Gemm", environment="torch", batch_sizes=(), devices=("cuda",)),
}


def entry_of(name: str, device: str = "cpu") -> Entry:
    """Return a system's entry on a device; `module:class` is a system of yours, in the harness's own environment."""
    if ":" in name:
        return Entry(place=name, environment="", batch_sizes=(), devices=())
    found = {**SYSTEMS, **DECODERS, **CEILINGS}[name]
    return replace(found, **_ON_GPU.get((name, device.partition(":")[0]), {}))


def all_entries() -> list[Entry]:
    """Return the entries of all systems on all devices."""
    elsewhere = [entry_of(name, device) for name, device in _ON_GPU]
    return [*SYSTEMS.values(), *DECODERS.values(), *CEILINGS.values(), *elsewhere]


def members(name: str) -> list[str]:
    """Return the systems of a name: the one with that name, or all whose names begin with it ("torch").

    A system never has the name of a family, so each can be selected alone.
    """
    if ":" in name:
        return [name]
    found = [system for system in SYSTEMS if system == name or system.startswith(f"{name}-")]
    if not found:
        raise ValueError(f"{name!r} is not a system; choose from {', '.join(SYSTEMS)}, or module:class for your own")
    return found


def open_system(name: str, model: str, n_threads: int, device: str = "cpu") -> System:
    """Import and construct the system of that name. Raises ValueError if it cannot compute on that device."""
    entry = entry_of(name)
    if entry.devices and device.partition(":")[0] not in entry.devices:
        raise ValueError(f"it does not compute on {device}, only on {', '.join(entry.devices)}")
    module, _, attribute = entry.place.partition(":")
    options = {} if device == "cpu" else {"device": device}
    system: System = getattr(import_module(module), attribute)(model, n_threads, **options)
    return system


def batches(passages: Sequence[str], batch_size: int | None) -> list[Sequence[str]]:
    """Divide passages into batches of a size, or leave them together."""
    size = batch_size or max(1, len(passages))
    return [passages[i : i + size] for i in range(0, len(passages), size)]
