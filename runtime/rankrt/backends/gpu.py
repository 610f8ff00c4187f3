"""A model on a GPU: one session, or one for each length of rows, and the runs in flight on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends import Logits
from rankrt.backends.batch import GPU_BATCHES
from rankrt.backends.in_flight import N_IN_FLIGHT, InFlight, Memory
from rankrt.backends.lanes import Lanes
from rankrt.backends.planner import Capacity, Plan, plan
from rankrt.backends.providers import PROVIDERS
from rankrt.backends.session import gpu_session_options, open_session
from rankrt.errors import DeviceError
from rankrt.host.device import Device
from rankrt.llm.exits import Keep
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

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        """Divide rows into runs and return their logits; a graph for a GPU has one exit, its end."""
        return self._logits_by(plan(encoded.lengths, self.capacity), encoded)

    def run(self, encoded: Encoded, exits: Sequence[int] = (), *, is_wide: bool) -> Logits:
        """Return the logits of rows that run together."""
        return self._logits_by(Plan.of_one_run(encoded.n_rows, is_wide=is_wide), encoded)

    def _logits_by(self, planned: Plan, encoded: Encoded) -> Logits:
        logits = np.empty(encoded.n_rows, np.float32)

        def run(rows: Int64Array) -> None:
            logits[rows] = self.run_on(self.number_for(int(encoded.lengths[rows].max())), encoded, rows)

        self._lanes.run(planned, run, run)
        return Logits(values=logits[None])

    def run_on(self, number: int, encoded: Encoded, rows: Int64Array) -> Float32Array:
        """Return the logits of rows, (n_rows,), as one run on the session of that number. Raises DeviceError."""
        try:
            return self._in_flight[number].run(self._batch(encoded, rows), len(rows))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
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

    The caller has found the GPU by `gpu_for`. Raises DeviceError if the graph would run elsewhere, and ArtifactError if
    it cannot be loaded there.
    """
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
