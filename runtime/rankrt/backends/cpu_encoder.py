"""Encoders on the CPU: ONNX Runtime sessions that share one copy of the weights.

A session's thread count is fixed when it is made, so there are two over the same prepared graph: one with all threads,
for wide runs, and one with a single thread that several callers share, for narrow runs. Over a graph that is not
prepared the weights would be in memory twice, so there is only the wide one.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends import Logits
from rankrt.backends.batch import BATCHES
from rankrt.backends.cpu_lanes import CpuLanes, n_narrow_lanes, wide_and_narrow
from rankrt.backends.planner import Capacity, Plan, plan
from rankrt.backends.session import open_session, session_options
from rankrt.host.memory import changing_mappings
from rankrt.llm.exits import Keep
from rankrt.text.pairs import Encoded


class CpuEncoder:
    """An encoder's graph on the CPU, with one exit: its end. Threads may share it."""

    def __init__(
        self,
        graph: Path,
        layout: Layout,
        *,
        n_threads: int,
        is_prepared: bool,
        emulates_vnni: bool = False,
        has_kernels: bool = False,
    ) -> None:
        """Load a graph as the artifact has it, or as the prepared cache has it, which is faster and shares memory."""
        # The weights of a graph with kernels are mapped from the artifact, so a second session copies none.
        n_narrow = n_narrow_lanes(n_threads, is_prepared=is_prepared or has_kernels)
        self.capacity = Capacity(layout=layout, n_threads=n_threads, n_narrow=n_narrow)
        self._batch = BATCHES[layout]
        self._wide: Any
        self._narrow: Any
        self._wide, self._narrow = wide_and_narrow(
            lambda n: open_session(
                graph,
                session_options(n, is_prepared=is_prepared, emulates_vnni=emulates_vnni, has_kernels=has_kernels),
            ),
            self.capacity,
        )
        self._lanes = CpuLanes(n_narrow, graph.parent)
        self._inputs = {node.name for node in self._wide.get_inputs()}

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        """Divide rows into runs and return their logits."""
        return self._logits_by(plan(encoded.lengths, self.capacity), encoded)

    def run(self, encoded: Encoded, exits: Sequence[int] = (), *, is_wide: bool) -> Logits:
        """Return the logits of rows that run together."""
        return self._logits_by(Plan.of_one_run(encoded.n_rows, is_wide=is_wide), encoded)

    def _logits_by(self, planned: Plan, encoded: Encoded) -> Logits:
        logits = np.empty(encoded.n_rows, np.float32)

        def run_on(session: Any, rows: Int64Array) -> None:
            arrays = self._batch(encoded, rows)
            feed = {name: array for name, array in arrays.items() if name in self._inputs}
            (logits[rows],) = session.run(None, feed)

        self._lanes.run(planned, partial(run_on, self._wide), partial(run_on, self._narrow))
        return Logits(values=logits[None])

    def close(self) -> None:
        """Release the threads, and the sessions with their memory."""
        self._lanes.close()
        self._let_go()

    def __del__(self) -> None:
        if changing_mappings is not None:  # the interpreter empties modules before the last objects go
            self._let_go()

    def _let_go(self) -> None:
        with changing_mappings():
            self._wide = self._narrow = None
