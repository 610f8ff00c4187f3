"""Connections that are too many, too slow or too talkative, against a server on real sockets."""

import contextlib
import gc
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from rankrt.server.http.connections import SPARE_CONNECTIONS, Connection, Loop, files_for  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from tests.server.support import certificate_in, serving_with_service  # noqa: E402

BODY = {"query": "one", "texts": ["two"]}
FULL = 4
QUICK = Limits(max_connections=FULL, header_timeout_s=0.3, body_timeout_s=0.3, max_header_bytes=4096)
PATIENT = Limits(max_connections=FULL, header_timeout_s=20)


@pytest.fixture(scope="module")
def quick(tiny_folder: Path) -> Iterator[tuple[str, Any]]:
    with serving_with_service(tiny_folder, limits=QUICK) as served:
        yield served


@pytest.fixture(scope="module")
def patient(tiny_folder: Path) -> Iterator[tuple[str, Any]]:
    with serving_with_service(tiny_folder, limits=PATIENT) as served:
        yield served


@contextlib.contextmanager
def connected(address: str, n: int = 1) -> Iterator[list[socket.socket]]:
    port = int(address.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(n)]


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes; it does, or this times out."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def wait_until(is_true) -> None:
    limit = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_full_server_answers_its_probes(patient: tuple[str, Any], path: str):
    address, service = patient
    with connected(address, FULL):
        wait_until(lambda: service.gate.n_open == FULL)
        probe = httpx.get(address + path)
        assert (probe.status_code, probe.headers["connection"]) == (200, "close")
    wait_until(lambda: service.gate.n_open == 0)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tei/rerank", BODY, "error"),
        ("/cohere/v2/rerank", {"query": "one", "documents": ["two"], "model": "tiny"}, "message"),
        ("/v1/rerank/stream", {"query": "one", "documents": ["two"]}, "detail"),
    ],
)
def test_a_full_server_says_503_and_why_in_the_words_of_the_dialect(patient: Any, path: str, body: Any, field: str):
    address, service = patient
    with connected(address, FULL):
        wait_until(lambda: service.gate.n_open == FULL)
        refused = httpx.post(address + path, json=body)
    assert refused.status_code == 503
    assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
    assert refused.json()[field] == f"too many connections (limit {FULL}); try again"
    wait_until(lambda: service.gate.n_open == 0)
    assert httpx.post(f"{address}/rerank", json=BODY).status_code == 200


def test_connections_beyond_the_spare_ones_are_closed_at_once_with_a_reason(patient: tuple[str, Any]):
    address, service = patient
    with connected(address, FULL + SPARE_CONNECTIONS + 20) as connections:
        # A slow host makes the last connection more than a second after the first; some are spare ones then.
        refused = [answer for answer in map(everything, connections[-20:]) if answer]
        assert refused
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        assert all(answer.endswith(b'"too many connections; try again"}') for answer in refused)
        wait_until(lambda: service.gate.n_open == FULL)  # the silent spare ones are closed after a second
        assert httpx.get(f"{address}/health").status_code == 200
    wait_until(lambda: service.gate.n_open == 0)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /rerank HTTP/1.1\r\nhost: a\r\nx-a: ", b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /hea", b"HTTP/1.1 200 "),
        (b"POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{", b"HTTP/1.1 404 "),
    ],
    ids=["silent", "half a header", "half a second header", "half a body that is not read"],
)
def test_a_connection_without_a_request_ends(quick: tuple[str, Any], sent: bytes, answer: bytes):
    with connected(quick[0]) as (connection,):
        connection.sendall(sent)
        if sent.endswith(b"\r\n\r\n{"):
            time.sleep(0.1)
            connection.sendall(b"}")  # each byte would stop the timer of kept connections for ever
        assert everything(connection).startswith(answer)


def test_a_header_that_comes_byte_by_byte_gets_no_more_time(quick: tuple[str, Any]):
    with connected(quick[0]) as (connection,):
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"GET /health HTTP/1.1\r\nx-a: " + b"y" * 100:
                connection.send(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - started < 1.5


def test_a_kept_connection_may_be_silent_for_longer_than_a_header(quick: tuple[str, Any]):
    with httpx.Client(base_url=quick[0]) as client, connected(quick[0]):
        client.get("/health")
        before = quick[1].gate.n_open
        time.sleep(0.6)
        assert quick[1].gate.n_open == before - 1, "the silent one was closed, the kept one was not"


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_connection_that_has_ended_leaves_at_once(quick: tuple[str, Any], is_reset: bool):
    """A timer kept those of clients that left while they were answered for 75 s, with all that they had sent."""
    wait_until(lambda: quick[1].gate.n_open == 0)
    gc.collect()
    gc.disable()
    try:
        with connected(quick[0]) as (client,):
            client.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            assert client.recv(1) == b"H"
            if is_reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        started = time.monotonic()
        wait_until(lambda: not [thing for thing in gc.get_objects() if issubclass(type(thing), Connection)])
        assert time.monotonic() - started < 4, "the timer has 5 s here"
    finally:
        gc.enable()


def test_a_client_that_does_not_read_is_disconnected(quick: tuple[str, Any]):
    address, service = quick
    wait_until(lambda: service.gate.n_open == 0)
    port = int(address.rpartition(":")[2])
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /docs HTTP/1.1\r\nhost: a\r\n\r\n" * 400)
        wait_until(lambda: service.gate.n_open == 1)
        wait_until(lambda: service.gate.n_open == 0)


@pytest.mark.parametrize(
    ("n_bytes", "status"), [(3900, b"200"), (4300, b"431"), (60_000, b"431")], ids=["fits", "one too many", "many"]
)
@pytest.mark.parametrize("at_once", [True, False])
def test_headers_are_bounded_however_they_come(quick: Any, n_bytes: int, status: bytes, at_once: bool):
    head = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-a: " + b"y" * n_bytes + b"\r\n\r\n"
    with connected(quick[0]) as (connection,):
        if at_once:
            connection.sendall(head)
        else:
            with contextlib.suppress(OSError):
                for start in range(0, len(head), 4000):
                    connection.sendall(head[start : start + 4000])
                    time.sleep(0.01)
        answer = everything(connection)
    # A reset may overtake the answer while the client still sends.
    assert answer.startswith(b"HTTP/1.1 " + status) or (answer == b"" and n_bytes == 60_000)


def test_what_is_not_http_is_400_and_no_library_is_advertised(quick: Any, caplog: pytest.LogCaptureFixture):
    with connected(quick[0], 2) as (noise, websocket):
        noise.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert everything(noise).startswith(b"HTTP/1.1 400 ")
        websocket.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert websocket.recv(100).startswith(b"HTTP/1.1 200 ")
    assert "pip install" not in caplog.text


def test_a_tls_handshake_that_does_not_come_ends_and_counts(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Loop, "handshake_timeout_s", 0.5)
    tls = certificate_in(tmp_path / "tls")
    trusted = ssl.create_default_context(cafile=tls[0])
    with serving_with_service(tiny_folder, limits=PATIENT, tls=tls) as (address, service):
        with connected(address, FULL) as connections:
            wait_until(lambda: service.gate.n_open == FULL)
            assert httpx.post(f"{address}/rerank", json=BODY, verify=trusted).status_code == 200
            assert [everything(connection) for connection in connections] == [b""] * FULL
        wait_until(lambda: service.gate.n_open == 0)


def test_what_is_worked_on_when_the_drain_ends_is_503_and_no_traceback(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
):
    gate, begun, answers = threading.Event(), threading.Event(), list[Any]()

    def ask(address: str) -> None:
        answers.append(httpx.post(f"{address}/rerank", json=BODY, timeout=20))

    with serving_with_service(tiny_folder, drain_s=1) as (address, service):
        (worker,) = service.workers
        plain = worker.run

        def run(lane: int, run: Any) -> Any:
            begun.set()
            gate.wait(10)
            return plain(lane, run)

        worker.run = run
        asking = threading.Thread(target=ask, args=(address,))
        asking.start()
        assert begun.wait(10)
        threading.Timer(3, gate.set).start()
    asking.join()
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].headers["connection"] == "close"
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def in_python(code: str, *, soft: int, hard: int) -> str:
    """Run code in a process that may have so many open files, and return what it prints."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n{code}"
    return subprocess.run([sys.executable, "-c", limited], check=True, capture_output=True, text=True).stdout.strip()


ALLOWED = """
from rankrt import InputError
from rankrt.server.http.connections import allow_connections
try:
    print(allow_connections({asked}, 2), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("asked", "soft", "hard", "said"),
    [
        (None, 1024, 4096, f"1024 {files_for(1024, 2)}"),
        (None, 1024, 1024, f"{1024 - files_for(0, 2)} 1024"),
        (100, 1024, 1024, "100 1024"),
        (2000, 1024, 1024, "--max-connections 2000 needs 2168 open files, and this process may have 1024; raise the"),
        (None, 100, 100, "--max-connections 1024 needs 1192 open files, and this process may have 100; raise the"),
    ],
)
def test_as_many_connections_are_allowed_as_files_can_be_open(asked: int | None, soft: int, hard: int, said: str):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this process may not have so many files itself")
    assert in_python(ALLOWED.format(asked=asked), soft=soft, hard=hard).startswith(said)


WITHOUT_FILES = """
import asyncio, os, socket
from rankrt.server.http.connections import Gate, listen

async def ask(client):
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"POST /rerank HTTP/1.1\\r\\nhost: a\\r\\ncontent-length: 9\\r\\n\\r\\n")
    await asyncio.sleep(0.1)
    await loop.sock_sendall(client, b'{"query":')
    return (await loop.sock_recv(client, 100)).partition(b"\\r")[0].decode()

async def main():
    gate = Gate(1000, greets=True)
    (listener,) = listen("127.0.0.1", 0, gate)
    kept = []  # Python 3.13 closes a connection that nothing holds
    async with await asyncio.start_server(lambda *streams: kept.append(streams), sock=listener):
        clients = [socket.socket() for _ in range(20)]
        for client in clients:
            client.setblocking(False)
        files = []
        try:
            while True:
                files.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.sock_connect(client, listener.getsockname()) for client in clients))
        print({*await asyncio.gather(*map(ask, clients))}, end=" ")
        for file in files[-2:]:
            os.close(file)
        clients[0].close()
        with socket.create_connection(listener.getsockname()):
            await asyncio.sleep(0.1)
            print(gate.n_refused, gate.n_open)
        gate.close()
        for _, writer in kept:
            writer.close()

asyncio.run(main())
"""


def test_without_a_file_left_connections_are_refused_and_their_clients_can_read_it():
    """One that was closed while its client sent was reset, which the client saw in place of the refusal."""
    refused = "{'HTTP/1.1 503 Service Unavailable'}"
    assert in_python(WITHOUT_FILES, soft=100, hard=100) == f"{refused} 20 1"


def test_who_still_sends_when_it_is_refused_can_read_why(patient: tuple[str, Any]):
    address, service = patient
    with connected(address, FULL + SPARE_CONNECTIONS), connected(address, 10) as refused:
        for connection in refused:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")
        time.sleep(0.1)
        for connection in refused:
            connection.sendall(b"x" * 100_000)
        assert {everything(connection)[:12] for connection in refused} == {b"HTTP/1.1 503"}
    wait_until(lambda: service.gate.n_open == 0)


def test_who_still_sends_on_a_spare_connection_can_read_why_it_is_refused(patient: tuple[str, Any]):
    address, service = patient
    with connected(address, FULL):
        wait_until(lambda: service.gate.n_open == FULL)
        with connected(address) as (refused,):
            refused.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")
            for _ in range(2):
                time.sleep(0.1)
                refused.sendall(b"x" * 50_000)
            assert everything(refused).startswith(b"HTTP/1.1 503 ")
    wait_until(lambda: service.gate.n_open == 0)
