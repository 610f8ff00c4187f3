"""Warnings that a process logs once, whichever thread comes first. Does not know what they are about."""

import logging
from threading import Lock

_logger = logging.getLogger("rankrt")
_said: set[str] = set()
# Models load in two threads, and functools.cache lets both of them through.
_one_at_a_time = Lock()


def warn_once(message: str) -> None:
    """Log a warning, unless this process has logged it before."""
    with _one_at_a_time:
        if message in _said:
            return
        _said.add(message)
    _logger.warning("%s", message)
