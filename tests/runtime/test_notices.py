"""A warning is said once in a process, also where two threads come to it together."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rankrt.notices import warn_once


class Slow(logging.Handler):
    """A log that takes its time, so that a second thread comes while the first still writes."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        time.sleep(0.05)
        self.said.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[Slow]:
    handler, logger = Slow(), logging.getLogger("rankrt")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_threads_that_come_together_warn_once(log: Slow):
    """functools.cache lets a second thread through while the first still logs."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(warn_once, ["models load in two threads"] * 4))
    assert log.said == ["models load in two threads"]


def test_another_message_is_another_warning(log: Slow):
    for message in ("one is damaged", "two is damaged", "one is damaged"):
        warn_once(message)
    assert log.said == ["one is damaged", "two is damaged"]
