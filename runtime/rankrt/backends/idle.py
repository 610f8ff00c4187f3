"""Doing something once nothing has happened for a while."""

import threading
import time
from collections.abc import Callable


class Idle:
    """Calls back, on a thread of its own, when the last thing to be noted is so many seconds ago; once each time."""

    def __init__(self, call: Callable[[], None], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._last = 0.0

    def note(self) -> None:
        """Note that something has happened just now: a microsecond, unless it is the first for a while."""
        self._last = time.monotonic()
        if self._timer is None:
            with self._lock:
                self._start(self._seconds)

    def close(self) -> None:
        """Call back no more."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _start(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        with self._lock:
            if self._timer is None:
                return  # closed
            self._timer = None
            left = self._last + self._seconds - time.monotonic()
            if left > 0:
                self._start(left)
                return
        self._call()
