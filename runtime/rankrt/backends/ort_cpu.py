"""The CPU backend: ONNX Runtime sessions that share one copy of the weights.

A session's thread count is fixed when it is made, so there are two over the same prepared graph: one with all threads,
for wide runs, and one with a single thread that several callers share, for narrow runs. Over a graph that is not
prepared the weights would be in memory twice, so there is only the wide one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact import Layout
from rankrt.backends.ort import import_onnxruntime, open_session, session_options
from rankrt.batch import BATCHES
from rankrt.machine import release_free_memory
from rankrt.planner import LONGEST_NARROW_ROW, Capacity, Plan
from rankrt.tokenizer import Encoded


class OrtCpu:
    """A graph on the CPU."""

    def __init__(self, graph: Path, layout: Layout, *, n_threads: int, is_prepared: bool) -> None:
        """Load a graph as the artifact has it, or as the prepared cache has it, which is faster and shares memory."""
        has_narrow = n_threads > 1 and is_prepared
        self.capacity = Capacity(
            layout=layout, n_threads=n_threads, n_narrow=n_threads if has_narrow or n_threads == 1 else 0
        )
        self._batch = BATCHES[layout]
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="rankrt")
        # Both at once: each spends 0.3 to 0.7 s of one thread on the packed weights of a model of 568 M parameters.
        counts = [n_threads, 1] if has_narrow else [n_threads]
        options = [session_options(n, is_prepared=is_prepared) for n in counts]
        sessions = list(self._pool.map(open_session, [graph] * len(options), options))
        # What loading needed for a while: 24 of 68 MB that two sessions of such a model leave.
        release_free_memory()
        self._wide, self._narrow = sessions[0], sessions[-1]
        self._inputs = {node.name for node in self._wide.get_inputs()}

    def run(self, encoded: Encoded, plan: Plan) -> Float32Array:
        """Return a logit for each row, shape (n_rows,)."""
        logits = np.empty(encoded.n_rows, np.float32)

        def run_wide(rows: Int64Array) -> None:
            logits[rows] = self._logits(self._wide, encoded, rows)

        def run_narrow(rows: Int64Array) -> None:
            logits[rows] = self._logits(self._narrow, encoded, rows)

        for rows in plan.wide:
            run_wide(rows)
        self._side_by_side(run_narrow, plan.narrow)
        return logits

    def close(self) -> None:
        """Release the threads; the sessions go with the last reference to them."""
        self._pool.shutdown(cancel_futures=True)

    def _side_by_side(self, run: Callable[[Int64Array], None], runs: Sequence[Int64Array]) -> None:
        if len(runs) < 2 or self.capacity.n_narrow == 1:
            for rows in runs:
                run(rows)
            return
        futures = [self._pool.submit(run, rows) for rows in runs]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            for future in futures:
                future.cancel()

    def _logits(self, session: Any, encoded: Encoded, rows: Int64Array) -> Float32Array:
        arrays = self._batch(encoded, rows)
        feed = {name: array for name, array in arrays.items() if name in self._inputs}
        (logits,) = session.run(None, feed, self._run_options(int(encoded.lengths[rows[0]])))
        return np.asarray(logits, np.float32)

    def _run_options(self, n_tokens: int) -> Any:
        """Give memory back after a row so long that keeping its activations would be felt."""
        if n_tokens <= LONGEST_NARROW_ROW:
            return None
        options = import_onnxruntime().RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options
