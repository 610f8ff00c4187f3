"""The threads of runs: wide runs one after the other, narrow ones side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from rankrt.arrays import Int64Array
from rankrt.backends.planner import Plan
from rankrt.cancellation import until_cancelled


class Lanes:
    """A pool of threads for narrow runs. Threads may share it."""

    def __init__(self, n_narrow: int) -> None:
        self._n_narrow = n_narrow
        self._pool = ThreadPoolExecutor(max(1, n_narrow), thread_name_prefix="rankrt")

    def run(self, plan: Plan, wide: Callable[[Int64Array], None], narrow: Callable[[Int64Array], None]) -> None:
        """Call `wide` with each wide run in turn, then `narrow` with the others, as many at a time as there are lanes.

        The first exception stops what has not begun, and is raised. So is Cancelled, before the next run.
        """
        wide, narrow = until_cancelled(wide), until_cancelled(narrow)
        for rows in plan.wide:
            wide(rows)
        self._side_by_side(narrow, plan.narrow)

    def close(self) -> None:
        """Release the threads after their runs. A pool that cancelled a run would never wake its caller."""
        self._pool.shutdown()

    def _side_by_side(self, run: Callable[[Int64Array], None], runs: Sequence[Int64Array]) -> None:
        if len(runs) < 2 or self._n_narrow == 1:
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
