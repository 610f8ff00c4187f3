"""A model on a GPU: one session, or one for each length of rows, and the runs in flight on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends.batch import GPU_BATCHES
from rankrt.backends.in_flight import N_IN_FLIGHT, InFlight, Memory
from rankrt.backends.lanes import Lanes
from rankrt.backends.planner import Capacity, Plan
from rankrt.backends.providers import PROVIDERS, gpu_for
from rankrt.backends.session import gpu_session_options, open_session
from rankrt.errors import DeviceError
from rankrt.host.device import Device
from rankrt.text.pairs import Encoded


class ForRows(NamedTuple):
    """A session for rows of up to so many tokens; None is any number."""

    longest: int | None
    session: Any


class GpuBackend:
    """Sessions of one graph on a GPU, for rows of ascending length. Threads may share it."""

    def __init__(self, sessions: Sequence[ForRows], layout: Layout, memory: Memory) -> None:
        self.sessions = tuple(sessions)
        self.capacity = Capacity(
            layout=layout, n_threads=1, n_narrow=N_IN_FLIGHT, longest_row=self.sessions[-1].longest
        )
        self._in_flight = [InFlight(found.session, memory) for found in self.sessions]
        self._batch = GPU_BATCHES[layout]
        self._lanes = Lanes(N_IN_FLIGHT)

    def run(self, encoded: Encoded, plan: Plan) -> Float32Array:
        """Return a logit for each row, shape (n_rows,)."""
        logits = np.empty(encoded.n_rows, np.float32)

        def run(rows: Int64Array) -> None:
            logits[rows] = self.run_on(self.number_for(int(encoded.lengths[rows].max())), encoded, rows)

        self._lanes.run(plan, run, run)
        return logits

    def run_on(self, number: int, encoded: Encoded, rows: Int64Array) -> Float32Array:
        """Return the logits of rows, (n_rows,), as one run on the session of that number. Raises DeviceError."""
        try:
            return self._in_flight[number].run(self._batch(encoded, rows), len(rows))
        except Exception as error:  # the engine's exceptions share no base of their own
            raise DeviceError(
                f"the GPU failed on {len(rows)} rows of up to {encoded.lengths[rows].max()} tokens: {error}"
            ) from error

    def number_for(self, longest: int) -> int:
        """Return which session takes a run with such a longest row: the first that can."""
        return next(i for i, found in enumerate(self.sessions) if found.longest is None or longest <= found.longest)

    def close(self) -> None:
        """Release the threads, and the GPU's memory with the sessions."""
        self._lanes.close()
        self.sessions, self._in_flight = (), []


def open_on(device: Device, graph: Path, level: str, settings: Mapping[str, str]) -> Any:
    """Load a graph with the provider that a device needs, which is given the settings; `level` as in ONNX Runtime.

    Raises DeviceError, with the reason, if this host cannot, and ArtifactError if the graph cannot be loaded there.
    """
    gpu_for(device)
    provider = PROVIDERS[device.target]
    if provider.memory == "cpu":  # what ends up there anyway: it has no settings and nothing to fall back to
        return open_session(graph, gpu_session_options(level, is_strict=False), provider.name)
    return open_session(graph, gpu_session_options(level), provider.name, settings)


def memory_of(device: Device) -> Memory:
    """Return the memory that a device takes inputs from."""
    return Memory(PROVIDERS[device.target].memory, device.index)


def placements(session: Any) -> dict[str, int]:
    """Return how many nodes of a session each provider runs."""
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts
