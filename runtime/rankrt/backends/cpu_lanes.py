"""Lanes on a CPU: what is loaded for them, and the memory that they give back when nothing runs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rankrt.arrays import Int64Array
from rankrt.backends.idle import Idle
from rankrt.backends.lanes import Lanes
from rankrt.backends.planner import Capacity, Plan
from rankrt.backends.session import Form
from rankrt.host.memory import keep_freed_memory, release_free_memory, unmap_largest

_Loaded = TypeVar("_Loaded")

# Giving memory back and taking it again costs milliseconds, which is not noticed after such a pause.
_IDLE_S = 1.0


def n_narrow_lanes(n_threads: int, form: Form) -> int:
    """Return how many narrow runs may go side by side: none where a second session would copy the weights."""
    shares_weights = form in ("prepared", "kernels")
    return n_threads if shares_weights or n_threads == 1 else 0


def wide_and_narrow(load: Callable[[int], _Loaded], capacity: Capacity) -> tuple[_Loaded, _Loaded]:
    """Call load(n_threads) for wide runs and load(1) for narrow ones; where one serves both, it is loaded once.

    Both at once: each spends 0.3 to 0.7 s of one thread on the packed weights of a model of 568 M parameters.
    """
    counts = [capacity.n_threads, 1] if capacity.n_threads > 1 and capacity.n_narrow else [capacity.n_threads]
    with ThreadPoolExecutor(len(counts)) as pool:
        loaded = list(pool.map(load, counts))
    # What loading needed for a while: 24 of 68 MB that two sessions of such a model leave.
    release_free_memory()
    keep_freed_memory()
    return loaded[0], loaded[-1]


class CpuLanes(Lanes):
    """Lanes for the graphs of a folder. Threads may share them."""

    def __init__(self, n_narrow: int, folder: Path, on_idle: Callable[[], None] = lambda: None) -> None:
        """`on_idle` drops what runs have left for each other, before memory is given back."""
        super().__init__(n_narrow)
        self._folder = folder
        self._on_idle = on_idle
        self._idle = Idle(self._release, _IDLE_S)

    def run(self, plan: Plan, wide: Callable[[Int64Array], None], narrow: Callable[[Int64Array], None]) -> None:
        """Call `wide` and `narrow` as all lanes do; when nothing has run for a second, give back what that has left."""
        with self._idle.busy():
            super().run(plan, wide, narrow)

    def close(self) -> None:
        """Release the threads."""
        self._idle.close()
        super().close()

    def _release(self) -> None:
        self._on_idle()
        unmap_largest(self._folder)
        release_free_memory()
