"""Runs of a session on a device, several in flight at a time, in buffers that are used again.

While one run computes, the next is prepared and sent. ONNX Runtime's Python interface runs outside the GIL and returns
when the scores are here. So it takes a thread for each run in flight. Memory that is called "cpu" works alike, and the
tests use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array, Int32Array
from rankrt.backends.session import import_onnxruntime

# One run computes while the next is prepared; a third would wait, with memory of its own.
N_IN_FLIGHT = 2
# Each input begins at a multiple of so many numbers: 256 bytes, what CUDA's own allocations have.
_ALIGNMENT = 64
_SMALLEST_BUFFER = 4096


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that a session takes its inputs from: "cuda" or "cpu", and the number of the device."""

    kind: str
    index: int = 0


class Slot:
    """A place for one run at a time: a buffer on the device for all inputs together, and a binding.

    The inputs are concatenated and sent by one copy. Host memory is not pinned, since the Python interface of
    ONNX Runtime 1.31 and 1.32 allocates none. A run's inputs are half a megabyte at most, and are sent while the run
    before computes.
    """

    def __init__(self, session: Any, memory: Memory) -> None:
        self._session, self._memory = session, memory
        self._binding = session.io_binding()
        self._buffers: dict[int, tuple[Int32Array, Any]] = {}

    def run(self, inputs: Mapping[str, Int32Array], n_rows: int) -> Float32Array:
        """Return the logits of a run, (n_rows,); they are on the host when it returns."""
        self._send(inputs)
        logits = np.empty(n_rows, np.float32)
        # A run of 16,384 tokens has some hundred logits: ONNX Runtime fetches them on its own stream, outside the GIL.
        self._binding.bind_output("logits", "cpu", 0, np.float32, [n_rows], logits.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return logits

    def _send(self, inputs: Mapping[str, Int32Array]) -> None:
        starts = np.cumsum([0, *(-(-array.size // _ALIGNMENT) * _ALIGNMENT for array in inputs.values())])
        host, device = self._buffer(int(starts[-1]))
        for start, array in zip(starts, inputs.values(), strict=False):
            host[start : start + array.size] = array.ravel()
        device.update_inplace(host)
        for start, (name, array) in zip(starts, inputs.items(), strict=False):
            place = device.data_ptr() + 4 * int(start)
            self._binding.bind_input(name, self._memory.kind, self._memory.index, np.int32, list(array.shape), place)

    def _buffer(self, n: int) -> tuple[Int32Array, Any]:
        """Return a buffer for so many numbers on the host, and its twin on the device. Sizes are powers of two."""
        size = max(_SMALLEST_BUFFER, 1 << (n - 1).bit_length())
        if size not in self._buffers:
            new = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
            self._buffers[size] = (
                np.zeros(size, np.int32),
                new([size], np.int32, self._memory.kind, self._memory.index),
            )
        return self._buffers[size]


class InFlight:
    """A session with the slots of its runs. Threads may share it; one that finds no slot free waits."""

    def __init__(self, session: Any, memory: Memory) -> None:
        self._inputs = {node.name for node in session.get_inputs()}
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(N_IN_FLIGHT):
            self._free.put(Slot(session, memory))

    def run(self, inputs: Mapping[str, Int32Array], n_rows: int) -> Float32Array:
        """Return the logits of a run, (n_rows,). Inputs that the graph does not declare are left out."""
        slot = self._free.get()
        try:
            return slot.run({name: array for name, array in inputs.items() if name in self._inputs}, n_rows)
        finally:
            self._free.put(slot)
