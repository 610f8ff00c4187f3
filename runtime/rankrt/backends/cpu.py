"""The CPU backend: ONNX Runtime sessions that share one copy of the weights.

A session's thread count is fixed when it is made, so there are two over the same prepared graph: one with all threads,
for wide runs, and one with a single thread that several callers share, for narrow runs. Over a graph that is not
prepared the weights would be in memory twice, so there is only the wide one.
"""

from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import InstructionSet, Layout
from rankrt.backends.batch import BATCHES
from rankrt.backends.cpu_lanes import CpuLanes, n_narrow_lanes, wide_and_narrow
from rankrt.backends.planner import Capacity, Plan
from rankrt.backends.session import open_session, session_options
from rankrt.host.memory import changing_mappings
from rankrt.text.pairs import Encoded


class OrtCpu:
    """A graph on the CPU."""

    def __init__(
        self,
        graph: Path,
        layout: Layout,
        *,
        n_threads: int,
        is_prepared: bool,
        instruction_set: InstructionSet | None = None,
    ) -> None:
        """Load a graph as the artifact has it, or as the prepared cache has it, which is faster and shares memory."""
        n_narrow = n_narrow_lanes(n_threads, is_prepared=is_prepared)
        self.capacity = Capacity(layout=layout, n_threads=n_threads, n_narrow=n_narrow)
        self._batch = BATCHES[layout]
        self._wide: Any
        self._narrow: Any
        self._wide, self._narrow = wide_and_narrow(
            lambda n: open_session(graph, session_options(n, is_prepared=is_prepared, instruction_set=instruction_set)),
            self.capacity,
        )
        self._lanes = CpuLanes(n_narrow, graph.parent)
        self._inputs = {node.name for node in self._wide.get_inputs()}

    def run(self, encoded: Encoded, plan: Plan) -> Float32Array:
        """Return a logit for each row, shape (n_rows,)."""
        logits = np.empty(encoded.n_rows, np.float32)

        def run_wide(rows: Int64Array) -> None:
            logits[rows] = self._logits(self._wide, encoded, rows)

        def run_narrow(rows: Int64Array) -> None:
            logits[rows] = self._logits(self._narrow, encoded, rows)

        self._lanes.run(plan, run_wide, run_narrow)
        return logits

    def close(self) -> None:
        """Release the threads, and the sessions with their memory."""
        self._lanes.close()
        with changing_mappings():
            self._wide = self._narrow = None

    def __del__(self) -> None:
        with changing_mappings():
            self._wide = self._narrow = None

    def _logits(self, session: Any, encoded: Encoded, rows: Int64Array) -> Float32Array:
        arrays = self._batch(encoded, rows)
        feed = {name: array for name, array in arrays.items() if name in self._inputs}
        (logits,) = session.run(None, feed)
        return np.asarray(logits, np.float32)
