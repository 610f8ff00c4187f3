"""Giving up a call: any thread asks for it, and the call stops before its next run of the model.

The asked-for stop belongs to the context of a call, not to the functions on the way to a run. So a backend needs no
parameter for it: `backends.lanes` asks before each run.
"""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from rankrt.errors import RankrtError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Cancelled(RankrtError):
    """The call was given up. Its caller does not wait any more, so no user sees this."""


class Cancellation:
    """Whether a call was given up. Threads may share one."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Give up the call."""
        self._asked.set()

    def during(self, work: Callable[[], _T]) -> _T:
        """Do the work as the call that this can give up. Raises Cancelled if that happens."""
        token = _of_this_call.set(self)
        try:
            return work()
        finally:
            _of_this_call.reset(token)

    def check(self) -> None:
        """Raise Cancelled if the call was given up."""
        if self._asked.is_set():
            raise Cancelled("the call was cancelled")


def until_cancelled(run: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return a function that raises Cancelled once the call of this context is given up, in whichever thread it runs.

    In a context without a cancellation it is the function itself.
    """
    cancellation = _of_this_call.get()
    if cancellation is None:
        return run

    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        cancellation.check()
        return run(*args, **kwargs)

    return checked


_of_this_call: ContextVar[Cancellation | None] = ContextVar("cancellation of this call", default=None)
