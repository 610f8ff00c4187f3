"""A server that the tests of a folder share: two tiny artifacts, and a client for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.support import serving
from tests.support import tiny_artifact


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    tiny_artifact(folder)
    return folder


@pytest.fixture(scope="session")
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKRT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def address(tiny_folder: Path, _session_cache: None) -> Iterator[str]:
    """The address of a server of one tiny model, that all tests may use."""
    pytest.importorskip("uvicorn", reason="needs the extra server")
    with serving(tiny_folder) as found:
        yield found


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[Any]:
    httpx = pytest.importorskip("httpx", reason="needs httpx")
    with httpx.Client(base_url=address, timeout=20) as opened:
        yield opened
