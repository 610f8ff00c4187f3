"""The threads that runs go on, and what is loaded for them: wide ones one after the other, narrow ones side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from rankrt.arrays import Int64Array
from rankrt.machine import release_free_memory
from rankrt.planner import Capacity, Plan

_Loaded = TypeVar("_Loaded")


def n_narrow_lanes(n_threads: int, *, is_prepared: bool) -> int:
    """Return how many narrow runs may go side by side: none where a second session would copy the weights."""
    return n_threads if is_prepared or n_threads == 1 else 0


def wide_and_narrow(load: Callable[[int], _Loaded], capacity: Capacity) -> tuple[_Loaded, _Loaded]:
    """Call load(n_threads) for wide runs and load(1) for narrow ones; where one serves both, it is loaded once.

    Both at once: each spends 0.3 to 0.7 s of one thread on the packed weights of a model of 568 M parameters.
    """
    counts = [capacity.n_threads, 1] if capacity.n_threads > 1 and capacity.n_narrow else [capacity.n_threads]
    with ThreadPoolExecutor(len(counts)) as pool:
        loaded = list(pool.map(load, counts))
    # What loading needed for a while: 24 of 68 MB that two sessions of such a model leave.
    release_free_memory()
    return loaded[0], loaded[-1]


class Lanes:
    """A pool of threads for narrow runs. Threads may share it."""

    def __init__(self, n_narrow: int) -> None:
        self._n_narrow = n_narrow
        self._pool = ThreadPoolExecutor(max(1, n_narrow), thread_name_prefix="rankrt")

    def run(self, plan: Plan, wide: Callable[[Int64Array], None], narrow: Callable[[Int64Array], None]) -> None:
        """Call `wide` with each wide run in turn, then `narrow` with the others, as many at a time as there are lanes.

        The first exception stops what has not begun, and is raised.
        """
        for rows in plan.wide:
            wide(rows)
        self._side_by_side(narrow, plan.narrow)

    def close(self) -> None:
        """Release the threads."""
        self._pool.shutdown(cancel_futures=True)

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
