"""What a server does when it cannot load, cannot score, or has to end: it says so, and keeps what there is."""

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from starlette.requests import Request  # noqa: E402

from rankrt import RankrtError, Reranker  # noqa: E402
from rankrt.artifact.manifest import Prompt, Template, open_artifact  # noqa: E402
from rankrt.server import models  # noqa: E402
from rankrt.server.background import Background  # noqa: E402
from rankrt.server.keys import ApiKeys  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from rankrt.server.models import LoadOptions, rules_of  # noqa: E402
from rankrt.server.scheduling.queue import Job  # noqa: E402
from tests.server.support import reload, serving_with_service, wait_until  # noqa: E402
from tests.server.test_serve import Served  # noqa: E402
from tests.support import POINTS, tiny_artifact  # noqa: E402

BODY = {"query": "one", "texts": ["two"], "raw_scores": True}


class Panic(BaseException):
    """Like pyo3's for a panic in Rust, which is not an Exception."""


ERRORS = [OSError(5, "Input/output error"), RuntimeError("broken"), MemoryError("short"), Panic("at the disco")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    return tiny_artifact(tmp_path / "served").folder


@pytest.fixture
def fail_to_find(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Have the next load raise."""

    def fail(error: BaseException) -> None:
        def raising(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(models, "find", raising)

    return fail


@pytest.mark.parametrize("error", ERRORS)
def test_a_first_load_that_fails_ends_the_server_with_a_sentence_whatever_the_error(
    folder: Path, error: BaseException, fail_to_find, caplog: pytest.LogCaptureFixture
):
    fail_to_find(error)
    with serving_with_service(folder) as (address, service):
        assert isinstance(service.error, RankrtError)
        assert str(service.error) == f"nothing is served: {type(error).__name__}: {error}"
        assert httpx.get(f"{address}/ready").json() == {"status": "loading"}
    is_explained = isinstance(error, OSError | MemoryError)
    assert ("Traceback" in caplog.text) == (not is_explained), "where a program fails is for who can mend it"


@pytest.mark.parametrize("error", ERRORS)
def test_a_reload_that_fails_keeps_what_there_is_and_says_why_whatever_the_error(
    folder: Path, error: BaseException, fail_to_find, caplog: pytest.LogCaptureFixture
):
    with serving_with_service(folder) as (address, service):
        fail_to_find(error)
        service.loop.call_soon_threadsafe(service.reload_soon)
        wait_until(lambda: str(error) in caplog.text)
        assert httpx.post(f"{address}/rerank", json=BODY).json()[0]["score"] == 3.0
        assert httpx.get(f"{address}/ready").status_code == 200


def test_an_error_of_a_task_in_the_background_is_in_the_log(caplog: pytest.LogCaptureFixture):
    async def work() -> None:
        raise KeyError("lost")

    async def main() -> None:
        background = Background()
        background.start(work())
        await asyncio.sleep(0.01)
        background.start(asyncio.sleep(10))
        await background.close()

    asyncio.run(main())
    assert "KeyError: 'lost'" in caplog.text


def test_an_error_that_ends_a_thread_is_in_the_log():
    """In a process of its own, as the hook is the process's."""
    source = """
import threading
from rankrt.server.telemetry.logs import log_to_stderr
log_to_stderr("json", "info")
thread = threading.Thread(target=lambda: 1 // 0, name="lane 3")
thread.start()
thread.join()
"""
    process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    line = json.loads(process.stderr)
    assert (line["message"], line["level"]) == ("the thread lane 3 ended with an error", "error")
    assert "ZeroDivisionError" in line["exception"]


def test_a_reload_that_fails_leaves_nothing_in_the_workers(folder: Path, tmp_path: Path):
    """The first of two models was loaded anew when the second one failed."""
    other = tiny_artifact(tmp_path / "other").folder
    with serving_with_service(f"a={folder}", f"b={other}") as (address, service):
        before = set(service.workers[0]._backends)
        tiny_artifact(folder, points={"fp32": POINTS * 2})
        shutil.rmtree(other)
        tiny_artifact(other, points={"fp32": POINTS * float("nan")})
        reload(service)
        assert set(service.workers[0]._backends) == before
        assert httpx.post(f"{address}/rerank", json=BODY).json()[0]["score"] == 3.0


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without it, what is in a circle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def known(*kinds: type) -> list[Any]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def models_of(folder: Path) -> list[models.Model]:
    return [model for model in known(models.Model) if model.artifact.folder == folder]


def test_what_was_answered_or_replaced_leaves_at_once_and_not_with_the_collector(folder: Path, no_collector: None):
    """In a circle with its job, a request kept its texts and its model: 19 MB more after each reload of a small one."""
    with serving_with_service(folder) as (address, service):
        for i in range(3):
            assert httpx.post(f"{address}/rerank", json=BODY).status_code == 200
            tiny_artifact(folder, max_length=32 + i)
            reload(service)
        wait_until(lambda: models_of(folder) == list(service.models))  # a thread may still hold the last request


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rerank", {"query": 1}, 422),
        ("/tokenize", {"inputs": 1}, 422),
        ("/rerank", BODY | {"texts": ["two"] * 11}, 413),
        ("/rerank", BODY | {"texts": ["two " * 100], "truncate": False}, 422),
        ("/rerank", BODY | {"texts": ["two " * 60] * 10}, 429),
        ("/rerank", BODY | {"texts": ["nan"]}, 424),
        ("/rerank", BODY | {"texts": ["three " * i for i in range(20, 30)], "timeout_ms": 1}, 504),
        ("/v1/rerank/stream", {"query": "one", "documents": ["nan"]}, 500),
    ],
)
def test_what_was_refused_leaves_at_once_too(
    folder: Path, path: str, body: dict[str, Any], status: int, no_collector: None
):
    """An error leads to the frames it went through, and half of a busy server's requests may end with one."""
    with serving_with_service(folder, limits=Limits(max_documents=10, max_queue_tokens=500)) as (address, _):
        assert httpx.post(address + path, json=body).status_code == status
        wait_until(lambda: not known(Job, Request))


def test_a_model_that_was_replaced_while_requests_waited_for_it_leaves_at_once(folder: Path, no_collector: None):
    """Why they were refused was kept for good, with all that they had: 20 MB for each time, of a small model."""
    with serving_with_service(folder, n_workers=1, load=LoadOptions(prepare=False)) as (address, service):
        (worker,) = service.workers
        for i in range(2):
            os.kill(worker.pid, signal.SIGSTOP)
            ask = partial(httpx.post, f"{address}/rerank", json=BODY, timeout=60)
            asking = [threading.Thread(target=ask) for _ in range(3)]
            for thread in asking:
                thread.start()
            wait_until(lambda: service.in_flight.n_requests == 3)
            shutil.rmtree(folder)
            tiny_artifact(folder, max_length=32 + i)
            os.kill(worker.pid, signal.SIGKILL)
            for thread in asking:
                thread.join()
            wait_until(lambda: worker.outage is None and models_of(folder) == list(service.models))
        assert not service.scheduler._abandoned


def test_without_a_worker_requests_wait_for_it_as_long_as_they_may(folder: Path):
    """A kill is not noticed; an artifact that is away is a refusal with its reason, and heals."""
    with serving_with_service(folder, n_workers=1, load=LoadOptions(prepare=False)) as (address, service):
        (worker,) = service.workers
        os.kill(worker.pid, signal.SIGKILL)
        assert httpx.post(f"{address}/rerank", json=BODY, timeout=30).json()[0]["score"] == 3.0

        away = folder.rename(folder.with_name("away"))
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: httpx.get(f"{address}/ready").status_code == 503)
        refused = httpx.post(f"{address}/rerank", json={**BODY, "timeout_ms": 500}, timeout=30)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"].startswith("0 of 1 documents were scored within 500 ms: ")
        wait_until(lambda: str(folder) in httpx.get(f"{address}/ready").json()["reason"])
        assert httpx.get(f"{address}/ready").json()["status"] == "unavailable"
        assert httpx.get(f"{address}/health").status_code == 200, "a restart would not help"

        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/rerank", json=BODY, timeout=60)))
        asking.start()
        time.sleep(0.2)
        away.rename(folder)
        asking.join()
        assert answers[0].json()[0]["score"] == 3.0, "it was asked while no worker could score"
        assert httpx.get(f"{address}/ready").status_code == 200


def test_a_reload_heals_at_once_what_would_come_back_later(folder: Path):
    with serving_with_service(folder, n_workers=1, load=LoadOptions(prepare=False)) as (_, service):
        (worker,) = service.workers
        away = folder.rename(folder.with_name("away"))
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: worker.outage is not None)
        time.sleep(4)  # the pauses between attempts have grown to 4 s
        away.rename(folder)
        started = time.monotonic()
        reload(service)
        wait_until(lambda: worker.outage is None)
        assert time.monotonic() - started < 3


def test_of_two_workers_the_healthy_one_serves_everything(folder: Path):
    with serving_with_service(folder, n_workers=2, load=LoadOptions(prepare=False)) as (address, service):
        away = folder.rename(folder.with_name("away"))
        os.kill(service.workers[0].pid, signal.SIGKILL)
        wait_until(lambda: service.workers[0].outage is not None)
        with httpx.Client(base_url=address, timeout=30) as client:
            assert {client.post("/rerank", json=BODY).json()[0]["score"] for _ in range(50)} == {3.0}
        assert httpx.get(f"{address}/ready").status_code == 200
        assert "rankrt_workers_ready 1.0" in httpx.get(f"{address}/metrics").text
        away.rename(folder)
        wait_until(lambda: service.workers[0].outage is None)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_artifact_that_was_replaced_is_taken_by_all_workers_together(folder: Path, n_workers: int):
    """A worker dies, and nothing is kept of what it had: the other one may not go on with other bytes than it."""
    load = LoadOptions(prepare=False)
    with serving_with_service(folder, n_workers=n_workers, load=load) as (address, service):
        shutil.rmtree(folder)
        tiny_artifact(folder, points={"fp32": POINTS * 2})
        with httpx.Client(base_url=address, timeout=30) as client:
            assert client.post("/rerank", json=BODY).json()[0]["score"] == 3.0, "nothing was told yet"
            os.kill(service.workers[0].pid, signal.SIGKILL)
            (old,) = {model.artifact.identity for model in service.models}
            wait_until(lambda: {model.artifact.identity for model in service.models} != {old})
            wait_until(lambda: all(worker.outage is None for worker in service.workers))
            assert {client.post("/rerank", json=BODY).json()[0]["score"] for _ in range(20)} == {6.0}
            assert httpx.get(f"{address}/ready").status_code == 200


def test_who_waits_for_an_artifact_that_was_replaced_is_told_to_ask_again(folder: Path):
    with serving_with_service(folder, n_workers=1, load=LoadOptions(prepare=False)) as (address, service):
        (worker,) = service.workers
        shutil.rmtree(folder)
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: worker.outage is not None)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/rerank", json=BODY, timeout=60)))
        asking.start()
        wait_until(lambda: service.scheduler.queue.n_rows == 1)
        tiny_artifact(folder, points={"fp32": POINTS * 2})
        asking.join()
        assert answers[0].status_code == 503
        assert "was replaced while no worker could score; ask again" in answers[0].json()["error"]
        assert httpx.post(f"{address}/rerank", json=BODY, timeout=30).json()[0]["score"] == 6.0


def test_a_reload_reads_the_keys_again_and_keeps_them_if_the_file_is_bad(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    keys = tmp_path / "keys"
    keys.write_text("first\n")

    def statuses(address: str) -> list[int]:
        headers = [{"authorization": f"Bearer {key}"} for key in ("first", "second")]
        return [httpx.post(f"{address}/rerank", json=BODY, headers=header).status_code for header in headers]

    with serving_with_service(folder, keys=ApiKeys.read(keys)) as (address, service):
        assert statuses(address) == [200, 401]
        keys.write_text("second\n")
        reload(service)
        assert statuses(address) == [401, 200]
        for damage in (lambda: keys.write_text("# none\n"), keys.unlink):
            damage()
            reload(service)
            assert statuses(address) == [401, 200]
    assert caplog.text.count("the keys of before are kept") == 2


def test_a_served_model_has_the_default_length_that_the_library_gives_it(folder: Path):
    """A decoder of 512 positions, whose question makes rows longer than max_length says."""
    prompt = Prompt(
        query_instruction="", query_format="{}{}", passage_instruction="", passage_format="{}{}", question="is it so?"
    )
    template = Template(prefix=(0,), separator=(2, 2), suffix=(2, 5, 6, 7), prompt=prompt)
    artifact = open_artifact(folder)
    manifest = msgspec.structs.replace(artifact.manifest, template=template, max_length=512)
    rules = rules_of(replace(artifact, manifest=manifest), LoadOptions())
    assert rules.max_length == template.max_length_within(512) < 512
    plain = open_artifact(folder)
    with Reranker.load(folder) as reranker:
        assert rules_of(plain, LoadOptions()) == reranker.rules


@pytest.fixture
def served(folder: Path):
    server = Served(folder, "--workers", "1", "--drain-s", "1", "--max-batch-tokens", "60")
    yield server
    if server.process.poll() is None:
        server.stop()


def test_what_goes_on_after_the_drain_is_refused_with_a_reason(served: Served):
    """A request that is scored, one whose body is still sent, a stream, and a client that reads nothing."""
    (worker,) = served.workers()
    os.kill(worker, signal.SIGSTOP)
    port = int(served.address.rpartition(":")[2])
    replies: dict[str, bytes] = {}

    def talk(name: str, path: str, body: bytes, n_bytes: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {n_bytes}"
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            replies[name] = b""
            while data := connection.recv(10_000):
                replies[name] += data

    whole = json.dumps(BODY).encode()
    stream = json.dumps({"query": "one", "documents": ["two", "three"]}).encode()
    asked = [
        ("scored", "/rerank", whole, len(whole)),
        ("half", "/rerank", whole[:10], len(whole)),
        ("stream", "/v1/rerank/stream", stream, len(stream)),
    ]
    threads = [threading.Thread(target=talk, args=arguments) for arguments in asked]
    for thread in threads:
        thread.start()
    wait_until(lambda: "rankrt_requests_in_flight 3.0" in served.get("/metrics").text)
    started = time.monotonic()
    assert served.stop() == -signal.SIGTERM
    assert 0.9 < time.monotonic() - started < 8
    for thread in threads:
        thread.join()
    for name in ("scored", "half", "stream"):
        head, _, body = replies[name].partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503"), (name, replies[name])
        assert {b"connection: close", b"retry-after: 5"} <= set(head.lower().split(b"\r\n"))
        assert b"the server is going down" in body
    refused = [line for line in served.lines if line.get("status") == 503]
    assert [line["error"] for line in refused] == ["unavailable"] * 3
    told = [line["message"] for line in served.lines if line["level"] in ("warning", "error")]
    assert told == ["the server ends: 3 requests are refused that were not answered"]
    assert not any("exception" in line for line in served.lines)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_stream_that_has_begun_is_told_of_the_end(served: Served):
    """Every row is a run of its own, so that many are left when the worker is stopped."""
    texts = [" ".join(chance.choices(["one", "two", "three", "four"], k=50)) for chance in map(Random, range(9000))]
    body = {"query": "one", "documents": texts}
    with httpx.stream("POST", f"{served.address}/v1/rerank/stream", json=body, timeout=30) as response:
        events = response.iter_lines()
        assert next(events) == "event: hit"
        (worker,) = served.workers()
        os.kill(worker, signal.SIGSTOP)
        stopping = threading.Thread(target=served.stop)
        stopping.start()
        said = [line for line in events if line]
        stopping.join()
    assert response.status_code == 200
    assert said[-2] == "event: error" and "the server is going down" in said[-1]


def test_a_run_is_taken_for_hung_when_no_request_can_wait_for_it_any_more():
    assert Limits(timeout_ms=1000).longest_run_s == 60
    assert Limits(timeout_ms=300_000).longest_run_s == 600
