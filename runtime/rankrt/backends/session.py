"""The common part of all ONNX Runtime backends: finding ONNX Runtime, options of a session, and forks."""

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

from rankrt.errors import ArtifactError, DeviceError, MissingExtra
from rankrt.host.memory import changing_mappings
from rankrt.host.telemetry import warn_if_too_late
from rankrt.kernels import LIBRARY

# How a session takes a graph for the CPU.
#   exported  ONNX Runtime optimises it, and packs the weights into a copy.
#   widened   The same for VNNI's graph on a processor without VNNI. Weights become unsigned, so that it is exact. That
#             costs all that int8 gains: v2-m3 took 0.75 of fp32's time on Zen 5, and 0.42 with the graph for AVX2.
#   prepared  Both was done before, and the packed weights are mapped.
#   kernels   It has rankrt's operators and nothing to optimise. Their weights are mapped. Only the head is packed.
Form: TypeAlias = Literal["exported", "widened", "prepared", "kernels"]

# It would be fused back from Add + LayerNormalization, and its CPU kernel is scalar: 1-4 % slower on AVX2.
_DISABLED_FUSIONS = "SkipLayerNormFusion"

_sessions: WeakSet[Any] = WeakSet()


def _keep_sessions_for_ever() -> None:
    """Keep a forked child from ever destroying a session. It would wait for the session's threads, which it lacks.

    That holds at its end as well, so the child takes a reference that Python does not know of.
    """
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _sessions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions_for_ever)


def keep_after_fork(session: Any) -> None:
    """Keep a session, of whichever library, from being destroyed in a forked child."""
    _sessions.add(session)


def import_onnxruntime() -> Any:
    """Return the onnxruntime module. Raises MissingExtra if there is none, DeviceError if there are two."""
    warn_if_too_late()
    try:
        found = import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "ONNX Runtime is not installed: pip install 'rankrt[cpu]' (or 'rankrt[gpu]' for an NVIDIA GPU)"
        ) from error
    if len(_records_beside(found)) > 1:
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu are both installed; they write the same files, so it is chance which one"
            " runs. Remove both and install one: pip uninstall onnxruntime onnxruntime-gpu; pip install 'rankrt[cpu]'"
            " (or 'rankrt[gpu]' on a machine with an NVIDIA GPU)"
        )
    return found


@cache
def _records_beside(module: Any) -> list[Path]:
    """Return pip's records of the distributions that wrote this module, found without importlib.metadata."""
    names = ("onnxruntime", "onnxruntime_gpu")
    return [found for name in names for found in Path(module.__file__).parents[1].glob(f"{name}-*.dist-info")]


def installed_builds() -> dict[str, str]:
    """Return the distributions that provide onnxruntime, with their versions."""
    from importlib.metadata import PackageNotFoundError, version  # 12 ms, to be said in messages only

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def session_options(n_threads: int, form: Form = "exported") -> Any:
    """Return options for one sequential run at a time on that many threads.

    Raises DeviceError if the graph needs rankrt's kernels and ONNX Runtime cannot load them.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Patterns are kept per exact shape, and here hardly two runs have the same.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False  # see host.memory.keep_freed_memory
    if form in ("prepared", "kernels"):
        # v2-m3 with kernels loads in 68 ms; looking for what could be optimised takes another 40.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("optimization.disable_specified_optimizers", _DISABLED_FUSIONS)
        if form == "widened":
            # Not with VNNI: ONNX Runtime tells by a difference of two kernels whether products saturate, so it would
            # widen there too.
            options.add_session_config_entry("session.x64quantprecision", "1")
    if form == "kernels":
        try:
            options.register_custom_ops_library(str(LIBRARY))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise DeviceError(f"ONNX Runtime {ort.__version__} cannot load rankrt's kernels: {error}") from error
    return options


def gpu_session_options(level: str, *, is_strict: bool = True) -> Any:
    """Return options for a session on a GPU. If it is strict, a node that cannot be there is an error.

    `level` names ONNX Runtime's optimisations: "ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", before nodes are placed, or more.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(is_strict)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Weights stay apart from the arena, which doubles: for weights of 1.1 GB it would hold as much again.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def open_session(
    graph: Path, options: Any, provider: str = "CPUExecutionProvider", settings: Mapping[str, str] | None = None
) -> Any:
    """Load a graph on one provider and no other.

    Raises ArtifactError with ONNX Runtime's words if it cannot be loaded. Raises DeviceError if it would run elsewhere.
    """
    ort = import_onnxruntime()
    try:
        # Without the last argument a provider that fails is replaced by the CPU, with a line on standard output.
        providers = [(provider, dict(settings or {}))]
        with changing_mappings():
            session = ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise ArtifactError(f"ONNX Runtime {ort.__version__} cannot load {graph}: {error}") from error
    keep_after_fork(session)
    if (used := session.get_providers()[0]) != provider:
        raise DeviceError(f"ONNX Runtime {ort.__version__} took {used} instead of {provider} for {graph}")
    return session
