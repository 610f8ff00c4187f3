"""OpenVINO on a CPU: an encoder in brain floats, which ONNX Runtime does not multiply there.

One compiled model has all threads, and takes wide runs only. A second one with a single thread would hold the weights
again. Weights stay fp32 in the artifact. OpenVINO rounds and packs them, in private memory of each process.

Two habits of OpenVINO would surprise. It prepares kernels for each new shape of a run, and keeps them; here their
number is limited. It computes in fp32 where it cannot in brain floats; here that is an error.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends import Logits
from rankrt.backends.batch import BATCHES
from rankrt.backends.cpu_lanes import CpuLanes
from rankrt.backends.planner import Capacity, Plan, plan
from rankrt.backends.session import keep_after_fork
from rankrt.errors import ArtifactError, DeviceError, MissingExtra
from rankrt.host.cpu import Machine
from rankrt.host.memory import changing_mappings, keep_freed_memory, release_free_memory, unmap_all
from rankrt.host.telemetry import without_openvinos
from rankrt.llm.exits import Keep
from rankrt.text.pairs import Encoded

LEAST_VERSION = (2026, 4)
_INSTALL = "pip install 'rankrt[cpu,openvino]'"
# One request computes, the arrays of the next are made meanwhile.
_N_REQUESTS = 2
# A new shape of a run takes about 6 ms and 0.75 MB for kernels. With OpenVINO's default of 5,000 kernels, rows of 500
# lengths kept 300 MB. With 1,000 they kept 145 MB, with 200 50 MB. Each length again took 5 ms more with 200 than with
# 5,000, which is 2 % of a run of 256 tokens of a model of 86 M parameters.
_KEPT_KERNELS = 500
# Weights are packed by the first run, which is done while loading.
_FIRST_TOKENS = 16


def openvino_version() -> str | None:
    """Return the version of OpenVINO that is installed, without importing it; None if there is none."""
    from importlib.metadata import PackageNotFoundError, version  # 12 ms, for an artifact with bf16 only

    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def check_openvino() -> None:
    """Raise MissingExtra if OpenVINO is not installed, DeviceError if it is too old."""
    if (found := openvino_version()) is None:
        raise MissingExtra(f"bf16 on a CPU needs OpenVINO, which is not installed: {_INSTALL}")
    if tuple(int(part) for part in found.split(".")[:2]) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise DeviceError(f"bf16 on a CPU needs OpenVINO {least} or newer, but {found} is installed: {_INSTALL}")


def why_not_bf16(machine: Machine) -> str | None:
    """Return what keeps OpenVINO from computing in brain floats on this machine; None if nothing does."""
    if machine.multiplies_bf16 is None:
        return f"{machine.processor} does not multiply brain floats (by AMX or AVX-512 BF16)"
    try:
        check_openvino()
    except (MissingExtra, DeviceError) as error:
        return str(error)
    return None


def import_openvino() -> Any:
    """Return the openvino module, which reports nothing. Raises what `check_openvino` raises."""
    check_openvino()
    try:
        with without_openvinos():
            return import_module("openvino")
    except (ImportError, OSError) as error:  # a library that it needs is missing or does not fit
        raise DeviceError(
            f"OpenVINO {openvino_version()} cannot be loaded: {error}. Install it again: {_INSTALL}"
        ) from error


class OpenVinoEncoder:
    """An encoder's graph in brain floats on a CPU, with one exit: its end. Threads may share it."""

    def __init__(self, graph: Path, layout: Layout, *, n_threads: int) -> None:
        """Load a graph as the artifact has it.

        Raises ArtifactError if OpenVINO cannot load it, DeviceError if it would not compute in brain floats, and what
        `check_openvino` raises.
        """
        self.capacity = Capacity(layout=layout, n_threads=n_threads, n_narrow=0)
        self._batch = BATCHES[layout]
        self._compiled: Any = _compiled(graph, n_threads)
        self._inputs = {node.get_any_name() for node in self._compiled.inputs}
        self._free: Any = SimpleQueue()
        for _ in range(_N_REQUESTS):
            self._free.put(self._compiled.create_infer_request())
        self._lanes = CpuLanes(0, graph.parent)
        self.run(Encoded.of_rows([np.zeros(_FIRST_TOKENS, np.int32)]), is_wide=True)
        unmap_all(graph.parent)
        release_free_memory()
        keep_freed_memory()

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        """Divide rows into runs and return their logits."""
        return self._logits_by(plan(encoded.lengths, self.capacity), encoded)

    def run(self, encoded: Encoded, exits: Sequence[int] = (), *, is_wide: bool) -> Logits:
        """Return the logits of rows that run together."""
        return self._logits_by(Plan.of_one_run(encoded.n_rows, is_wide=is_wide), encoded)

    def close(self) -> None:
        """Release the threads, and the compiled model with its memory."""
        self._lanes.close()
        self._let_go()

    def __del__(self) -> None:
        if changing_mappings is not None:  # the interpreter empties modules before the last objects go
            self._let_go()

    def _let_go(self) -> None:
        with changing_mappings():
            self._compiled = self._free = None

    def _logits_by(self, planned: Plan, encoded: Encoded) -> Logits:
        logits = np.empty(encoded.n_rows, np.float32)

        def run(rows: Int64Array) -> None:
            logits[rows] = self._run_on_all(encoded, rows)

        self._lanes.run(planned, run, run)
        return Logits(values=logits[None])

    def _run_on_all(self, encoded: Encoded, rows: Int64Array) -> Float32Array:
        arrays = self._batch(encoded, rows)
        feed = {name: array for name, array in arrays.items() if name in self._inputs}
        request = self._free.get()
        try:
            request.infer(feed, share_inputs=True)
            return np.array(request.get_output_tensor(0).data, np.float32)
        finally:
            self._free.put(request)


def _compiled(graph: Path, n_threads: int) -> Any:
    """Return the compiled model: one stream, whose threads are not bound to cores, which other processes may share."""
    openvino = import_openvino()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": str(_KEPT_KERNELS),
    }
    try:
        with changing_mappings():
            compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO {openvino_version()} cannot load {graph}: {error}") from error
    keep_after_fork(compiled)
    if (taken := compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) != "bf16":
        raise DeviceError(f"OpenVINO {openvino_version()} took {taken} instead of bf16 on this processor; use fp32")
    return compiled
