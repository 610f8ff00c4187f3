"""Calls that an event loop waits for: each runs in a thread, a few at a time, and stops when its task is cancelled.

Knows nothing of rerankers. asyncio is imported by the first call, because it takes 30 ms that other programs save.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rankrt.cancellation import Cancellation

_T = TypeVar("_T")

# One call's text becomes tokens while the other's rows run; the runs of one call use all cores. More calls at a time
# would only share them, and each would hold its rows in memory.
_N_AT_A_TIME = 2


class Calls:
    """The threads of a model's calls. Event loops may share them; a call beyond their number waits for its turn."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_N_AT_A_TIME, thread_name_prefix="rankrt call")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do the work in a thread and return its result, or raise what it raises.

        If the task is cancelled, work that waits is dropped, and work that runs stops before its next run of the model.
        """
        import asyncio

        cancellation = Cancellation()
        future = self._pool.submit(cancellation.during, work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancellation.ask()
            raise

    def close(self) -> None:
        """Take no more work. The threads end when they have done what they have."""
        self._pool.shutdown(wait=False)
