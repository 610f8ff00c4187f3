"""The tests of the operators need the library, and a processor that runs it."""

import pytest

from tests.kernels.support import why_not


@pytest.fixture(scope="session")
def library() -> None:
    """Skip where there is no library for this processor."""
    if reason := why_not():
        pytest.skip(reason)
