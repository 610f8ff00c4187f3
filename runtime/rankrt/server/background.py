"""Tasks that are not awaited. They are started in one way, so that each of their errors is read."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

_logger = logging.getLogger("rankrt.server")


class Background:
    """The tasks of one event loop that run by themselves."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself keeps no hold of them

    def start(
        self, work: Coroutine[Any, Any, Any], on_error: Callable[[BaseException], None] | None = None
    ) -> asyncio.Task[Any]:
        """Start work; whatever it raises goes to `on_error`, or into the log."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if task.cancelled() or (error := task.exception()) is None:
                return
            if on_error is None:
                _logger.error("an error of the server in the background", exc_info=error)
            else:
                on_error(error)

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    async def close(self) -> None:
        """Cancel the tasks, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
