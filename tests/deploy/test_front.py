"""deploy/haproxy/haproxy.cfg in a real HAProxy: where requests go, and what a restart of replicas loses."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
front = pytest.importorskip("benchmarks.harness.front", reason="needs the source tree")
crowd = pytest.importorskip("benchmarks.harness.crowd", reason="needs the source tree")

from benchmarks.harness.served import Server  # noqa: E402
from rankrt import Reranker  # noqa: E402
from tests.server.support import wait_until  # noqa: E402
from tests.support import tiny_artifact  # noqa: E402

pytestmark = pytest.mark.skipif(not front.has_haproxy(), reason="needs HAProxy 2.6 or newer")
# A server that ends has answered what it took. Its front sends what it had not taken to the other replica.
OPTIONS = ("--workers", "0", "--threads", "1", "--cache-mb", "1")
# The words that the tiny model knows: other words are all the same to it.
QUERIES = [" ".join(words) for words in product(("zero", "one", "two", "three", "four"), repeat=2)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("front") / "tiny").folder


@pytest.fixture(scope="module")
def servers(artifact: Path) -> Iterator[list[Server]]:
    """Two replicas. A test that ends one of them starts it again."""
    servers = [started(artifact) for _ in range(2)]
    yield servers
    for server in servers:
        server.__exit__()


def started(artifact: Path, port: int | None = None) -> Server:
    environment = {"RANKRT_CACHE": str(artifact.parent / "cache")}
    return Server(str(artifact), *OPTIONS, port=port, environment=environment)


def ask(port: int, body: dict[str, Any], path: str = "/rerank") -> bytes:
    status, answer, _ = crowd.post(port, json.dumps(body).encode(), path=path)
    assert status == 200, answer
    return bytes(answer)


def counts(servers: list[Server], name: str) -> list[float]:
    return [sum(value for key, value in server.metrics().items() if key.startswith(name)) for server in servers]


def has_answered(server: Server, n: int) -> bool:
    return counts([server], "rankrt_requests_total")[0] > n


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "{}", "texts": ["one"]}),
        ("/rerank", {"texts": ["one " * 20_000], "query": "{}"}),
        ("/rerank", {"query": "{}", "texts": ["four " * 100_000]}),
        ("/v1/rerank", {"query": {"text": "{}"}, "documents": ["two"]}),
        ("/v1/ranking", {"query": {"text": "{}"}, "passages": [{"text": "three"}]}),
    ],
)
def test_the_same_query_meets_the_same_replica_in_every_dialect(servers: Any, tmp_path: Path, path: str, body: Any):
    names = ("rankrt_cache_hits_total", "rankrt_cache_misses_total")
    before = [sum(counts(servers, name)) for name in names]
    with front.Front(tmp_path, [server.port for server in servers], "by_query") as opened:
        for query in QUERIES * 3:
            ask(opened.port, json.loads(json.dumps(body).replace("{}", query)), path)
    hits, misses = (sum(counts(servers, name)) - then for name, then in zip(names, before, strict=True))
    # A query that comes to both replicas misses twice. Without the hash half of them would; the bound passes on a few.
    assert len(QUERIES) <= misses <= 1.2 * len(QUERIES)
    assert hits + misses == 3 * len(QUERIES)


def test_a_query_after_more_than_haproxy_keeps_is_answered_too(servers: Any, tmp_path: Path):
    with front.Front(tmp_path, [server.port for server in servers], "by_query") as opened:
        assert ask(opened.port, {"texts": ["four " * 100_000], "query": "one"})


def test_a_replica_that_is_away_passes_its_queries_to_the_other(artifact: Path, servers: Any, tmp_path: Path):
    (before,) = counts(servers[1:], "rankrt_requests_total")
    with started(artifact) as away, front.Front(tmp_path, [away.port, servers[1].port], "by_query") as opened:
        away.process.kill()
        for query in QUERIES:
            ask(opened.port, {"query": query, "texts": ["two"]})
    assert counts(servers[1:], "rankrt_requests_total") == [before + len(QUERIES)]


def test_least_connections_gives_both_replicas_work(servers: Any, tmp_path: Path):
    before = counts(servers, "rankrt_requests_total")
    with front.Front(tmp_path, [server.port for server in servers], "by_load") as opened:
        for query in QUERIES:
            ask(opened.port, {"query": query, "texts": ["two"]})
    first, second = (now - then for now, then in zip(counts(servers, "rankrt_requests_total"), before, strict=True))
    assert first + second == len(QUERIES)
    assert abs(first - second) <= 1


@pytest.mark.parametrize("backend", ["by_query", "by_load"])
def test_a_rolling_restart_under_load_loses_nothing(artifact: Path, servers: Any, tmp_path: Path, backend: str):
    cases, found = crowd.make_cases(artifact), crowd.Findings()
    with front.Front(tmp_path, [server.port for server in servers], backend) as opened:

        def client() -> None:
            crowd.ask(opened.port, cases, found)

        with crowd.Crowd([client] * 4, found):
            for i, server in enumerate(servers):
                server.__exit__()  # it is told to end, and answers what it took
                servers[i] = started(artifact, server.port)
                # The front asks every second. Until it knows that this one is back, the other is all that it has.
                wait_until(partial(has_answered, servers[i], 10))
    assert found.wrong == []
    assert set(found.statuses) == {"200"}


def test_a_replica_that_is_drained_first_loses_no_large_body(artifact: Path, servers: Any, tmp_path: Path):
    text = "two " * 100_000  # more than HAProxy keeps, so that it cannot send it again
    with Reranker.load(artifact) as reranker:
        case = crowd.Case(query="one", texts=[text], scores=reranker.score([("one", text)]).tolist())
    found = crowd.Findings()
    ports = [server.port for server in servers]
    with (
        front.Front(tmp_path, ports, "by_load") as opened,
        crowd.Crowd([lambda: crowd.ask(opened.port, [case], found)] * 4, found),
    ):
        for i, server in enumerate(servers):
            name = f"by_load/rankrt{i + 1}"
            assert opened.command(f"set server {name} state drain").strip() == ""
            wait_until(partial(is_free, opened, name))
            server.__exit__()
            servers[i] = started(artifact, server.port)
            opened.command(f"set server {name} state ready")
            wait_until(partial(has_answered, servers[i], 5))
    assert found.wrong == []
    assert set(found.statuses) == {"200"}


def is_free(opened: Any, name: str) -> bool:
    """Tell whether HAProxy counts no request that a server has."""
    lines = opened.command("show stat").splitlines()
    rows = [dict(zip(lines[0].lstrip("# ").split(","), line.split(","), strict=False)) for line in lines[1:] if line]
    (row,) = [row for row in rows if f"{row['pxname']}/{row['svname']}" == name]
    return int(row["scur"]) == 0
