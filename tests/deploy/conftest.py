"""A server with a worker, so that it has every figure."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.figures import figures_of
from tests.server.support import serving
from tests.support import tiny_artifact


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("uvicorn", reason="needs the extra server")
    folder = tiny_artifact(tmp_path_factory.mktemp("deployed") / "tiny").folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        with serving(folder, n_workers=1) as found:
            yield found


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[Any]:
    httpx = pytest.importorskip("httpx", reason="needs httpx")
    with httpx.Client(base_url=address, timeout=20) as opened:
        yield opened


@pytest.fixture(scope="session")
def figures(client: Any) -> dict[str, set[str]]:
    """The names of the server's figures after an answer and a refusal, each with the names of its labels."""
    for body in ({"query": "one"}, {"query": "one", "texts": ["two " * 500]}):
        client.post("/rerank", json=body)
    return figures_of(client.get("/metrics").text)
