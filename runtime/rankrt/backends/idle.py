"""Doing something once nothing has happened for a while."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Idle:
    """Calls back, on a thread of its own, when nothing has been done for so many seconds; once each time."""

    def __init__(self, call: Callable[[], None], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._n_busy, self._ended, self._is_closed = 0, 0.0, False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Note that something is done for as long as the block lasts."""
        with self._lock:
            self._n_busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_busy, self._ended = self._n_busy - 1, time.monotonic()
                if self._timer is None and not self._is_closed:
                    self._start(self._seconds)

    def close(self) -> None:
        """Call back no more."""
        with self._lock:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _start(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            if self._is_closed or self._n_busy:
                return  # the end of what is done now starts the time again
            left = self._ended + self._seconds - time.monotonic()
            if left > 0:
                self._start(left)
                return
        self._call()
