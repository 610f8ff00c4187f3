"""What is refused, when, and how it is said: bodies, deadlines, queues, clients that leave."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rankrt.server.limits import Limits  # noqa: E402
from tests.server.support import serving_with_service  # noqa: E402

JSON = {"content-type": "application/json"}
BODY = {"query": "one", "texts": ["two"]}


class Brake:
    """Holds back the runs of a service until it is released."""

    def __init__(self, service: Any) -> None:
        self.gate = threading.Event()
        (worker,) = service.workers
        self._run = worker.run
        worker.run = self.run
        self.n_rows = 0
        self.n_begun = 0

    def run(self, lane: int, run: Any) -> np.ndarray:
        self.n_begun += 1
        self.gate.wait(10)
        self.n_rows += len(run.rows)
        return np.asarray(self._run(lane, run))


@pytest.fixture
def slow(tiny_folder: Path) -> Iterator[tuple[str, Any, Brake]]:
    """A server whose runs wait for a brake, with small limits."""
    limits = Limits(max_queue_tokens=100, max_documents=50, max_body_bytes=5000, body_timeout_s=0.3, timeout_ms=5000)
    with serving_with_service(tiny_folder, limits=limits, n_threads=1) as (address, service):
        brake = Brake(service)
        yield address, service, brake
        brake.gate.set()


def wait_until(is_true) -> None:
    limit = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"query": "a", "texts": ["b"]} trailing', 400, "not JSON"),
        (b'{"query": "\xff", "texts": ["b"]}', 400, "UTF-8"),
        (b'{"query": "\\ud800", "texts": ["b"]}', 400, "not JSON"),
        (b'{"x": ' + b"[" * 100_000, 400, "nested too deeply"),
        (b'{"query": "a", "texts": ["b"], "x": ' + b'{"a":' * 100_000, 400, "nested too deeply"),
        (b"[]", 422, "Expected `object`, got `array`"),
        (b"null", 422, "Expected `object`, got `null`"),
        (b'{"query": "a", "texts": {"b": 1}}', 422, "Expected `array`"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_not_a_request_is_told_so(client: Any, content: bytes, status: int, said: str):
    response = client.post("/tei/rerank", content=content, headers=JSON)
    assert response.status_code == status
    assert said in response.json()["error"]


def test_a_body_that_is_not_json_by_name_is_refused(client: Any):
    response = client.post("/rerank", content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert response.json()["error"] == "the body is text/plain; send content-type: application/json"


def test_a_message_holds_nothing_of_a_text(client: Any):
    response = client.post("/rerank", json={"query": "secret", "texts": [{"secret": 1}]})
    assert "secret" not in response.text


def test_too_large_a_body_is_refused_with_the_figure(slow: Any):
    address, service, _ = slow
    big = json.dumps({"query": "one", "texts": ["two " * 5000]}).encode()
    for content in (big, iter([big])):  # with its length said before, and in chunks
        response = httpx.post(f"{address}/rerank", content=content, headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"] == "the body is too large (limit 5000 bytes)"
    wait_until(lambda: service.in_flight.n_bytes == 0)


def test_too_large_a_body_that_came_whole_is_refused_at_once(slow: Any):
    """A server that waits for more of it would answer after 5 s."""
    address, _, _ = slow
    header = b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=3) as connection:
        connection.sendall(header + b"1771\r\n" + b" " * 0x1771 + b"\r\n0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_client_that_sends_on_regardless_still_reads_why_it_was_refused(slow: Any):
    address, _, _ = slow
    big = json.dumps({"query": "one", "texts": ["two " * 5_000_000]}).encode()
    assert httpx.post(f"{address}/rerank", content=big, headers=JSON).status_code == 413
    assert httpx.post(f"{address}/rerank", content=big, headers={"content-type": "text/plain"}).status_code == 415


def test_a_body_that_does_not_come_is_not_waited_for(slow: Any):
    address, service, _ = slow
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
        connection.sendall(b'content-length: 100\r\n\r\n{"query": ')
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    wait_until(lambda: service.in_flight.n_requests == 0)


def test_too_many_documents_are_refused_with_the_figure(slow: Any):
    address, _, _ = slow
    response = httpx.post(f"{address}/rerank", json={"query": "one", "texts": ["two"] * 51})
    assert response.status_code == 413, "as TEI documents it"
    assert response.json()["error"] == "too many documents: 51 (limit 50)"
    statuses = {"/vllm/rerank": 400, "/jina/v1/rerank": 422, "/cohere/v2/rerank": 422, "/llamacpp/rerank": 400}
    for path, status in statuses.items():
        body = {"model": "m", "query": "one", "documents": ["two"] * 51}
        assert httpx.post(f"{address}{path}", json=body).status_code == status


def test_a_deadline_that_passes_is_504(slow: Any):
    address, service, _ = slow
    response = httpx.post(f"{address}/rerank", json={**BODY, "timeout_ms": 50})
    assert response.status_code == 504
    assert response.json() == {
        "error": "0 of 1 documents were scored within 50 ms; ask for partial_results to get those",
        "error_type": "Backend",
    }
    assert service.scheduler.queue.n_tokens == 0


def test_what_was_scored_in_time_is_an_answer_if_that_is_wanted(slow: Any):
    address, service, brake = slow
    texts = [" ".join(["two"] * n) for n in (1, 2, 3)]
    body = {"query": "one", "texts": texts, "timeout_ms": 500, "partial_results": True, "raw_scores": True}

    def run(lane: int, run: Any) -> np.ndarray:
        if any(len(row) > 6 for row in run.rows):
            brake.gate.wait(10)
        return np.array([len(row) for row in run.rows], np.float32)

    service.workers[0].run = run
    service.scheduler._max_batch_tokens = 6
    response = httpx.post(f"{address}/rerank", json=body)
    assert response.json() == [{"index": 0, "score": 6.0}]
    assert response.headers["x-rankrt-partial"] == "1/3"
    brake.gate.set()


def test_a_full_queue_is_429_with_a_time_to_come_back(slow: Any):
    address, _, brake = slow
    answers: list[Any] = []

    def ask(text: str) -> None:
        answers.append(httpx.post(f"{address}/rerank", json={"query": "one", "texts": [text]}, timeout=20))

    first = threading.Thread(target=ask, args=("two " * 50,))
    first.start()
    wait_until(lambda: brake.n_begun == 1)
    refused = httpx.post(f"{address}/rerank", json={"query": "one", "texts": ["three " * 58]})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_type"] == "Overloaded"
    assert "limit 100" in refused.json()["error"]
    brake.gate.set()
    first.join()
    assert [answer.status_code for answer in answers] == [200]


def test_what_cannot_be_answered_in_time_is_429_at_once_and_what_is_left_of_it_is_not_scored(slow: Any):
    address, service, brake = slow
    service.scheduler._paces[service.models._find(None).served.key, ()].seconds_per_token = 0.1
    first = threading.Thread(target=httpx.post, args=(f"{address}/rerank",), kwargs={"json": BODY, "timeout": 20})
    first.start()
    wait_until(lambda: brake.n_begun == 1)
    started = time.monotonic()
    refused = httpx.post(f"{address}/rerank", json={"query": "one", "texts": ["three " * 28]})
    assert time.monotonic() - started < 1
    assert refused.status_code == 429
    assert "try again in" in refused.json()["error"]
    assert "has 5.0 s" in refused.json()["error"]
    brake.gate.set()
    first.join()


def test_bodies_together_have_a_limit_too(tiny_folder: Path):
    limits = Limits(max_inflight_bytes=1000)
    with serving_with_service(tiny_folder, limits=limits) as (address, service):
        service.in_flight.n_bytes += 990
        response = httpx.post(f"{address}/rerank", json=BODY)
        assert response.status_code == 429
        assert response.json()["error"] == "server busy: 990 bytes of requests in flight (limit 1000); try again"


def test_nobody_works_for_a_client_that_has_left(slow: Any):
    address, service, brake = slow
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/rerank", json={"query": "one", "texts": ["two", "three", "four"]}, timeout=0.2)
    wait_until(lambda: service.in_flight.n_requests == 0)
    assert service.scheduler.queue.n_tokens == 0
    brake.gate.set()
    assert httpx.post(f"{address}/rerank", json=BODY).status_code == 200
    assert brake.n_rows <= 4


def test_nobody_works_for_a_stream_that_was_left(slow: Any):
    address, service, brake = slow
    brake.gate.set()
    body = {"query": "one", "documents": ["two", "three", "four"]}
    with httpx.stream("POST", f"{address}/v1/rerank/stream", json=body) as response:
        next(response.iter_bytes())
    wait_until(lambda: service.in_flight.n_requests == 0)
    assert service.scheduler.queue.n_tokens == 0


def test_headers_without_end_are_refused(address: str):
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\n")
        flood = b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(200))
        try:
            connection.sendall(flood)
            answer = connection.recv(1000)
        except OSError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
