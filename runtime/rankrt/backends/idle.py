"""Doing something once nothing has happened for a while."""

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Idle:
    """Calls back, on a thread of its own, when nothing has been done for so many seconds; once each time."""

    def __init__(self, call: Callable[[], None], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._lock = threading.Lock()
        self._n_busy, self._ended = 0, 0.0
        # A thread looks again until then. One that fails to start, for lack of memory, is replaced after that.
        self._watched_until = 0.0
        self._closed = threading.Event()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Note that something is done for as long as the block lasts."""
        with self._lock:
            self._n_busy += 1
        try:
            yield
        finally:
            now = time.monotonic()
            with self._lock:
                self._n_busy, self._ended = self._n_busy - 1, now
                if is_new := now > self._watched_until:
                    self._watched_until = now + 2 * self._seconds
            if is_new and not self._closed.is_set():
                # Thread.start waits until the thread says that it runs. Without memory it never says so.
                with suppress(RuntimeError):  # no thread is to be had now; a later run tries again
                    _thread.start_new_thread(self._watch, ())

    def close(self) -> None:
        """Call back no more."""
        self._closed.set()

    def _watch(self) -> None:
        left = self._seconds
        while left > 0:
            self._closed.wait(left)
            with self._lock:
                now = time.monotonic()
                left = self._ended + self._seconds - now
                if self._closed.is_set() or self._n_busy:
                    self._watched_until = 0.0  # the end of what is done now starts the time again
                    return
                self._watched_until = now + left + self._seconds if left > 0 else 0.0
        self._call()
