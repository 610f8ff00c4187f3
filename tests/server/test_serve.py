"""`rankrt serve` as people start, signal and stop it: a process with worker processes."""

import json
import logging
import os
import re
import signal
import socket
import ssl
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

from rankrt.cli.main import main  # noqa: E402
from tests.server.support import certificate_in  # noqa: E402
from tests.support import tiny_artifact  # noqa: E402

BODY = {"query": "one", "texts": ["two"]}


class Served:
    """A running `rankrt serve`."""

    def __init__(self, *arguments: object, verify: Any = True) -> None:
        self._verify = verify
        command = [
            sys.executable,
            "-m",
            "rankrt.cli.main",
            "serve",
            *map(str, arguments),
            "--port",
            "0",
            "--threads",
            str(min(2, len(os.sched_getaffinity(0)))),
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._ready.wait(20), self.lines
        while self.get("/ready").status_code != 200:
            time.sleep(0.02)

    def get(self, path: str) -> Any:
        return httpx.get(self.address + path, verify=self._verify)

    def post(self, path: str, body: Any) -> Any:
        return httpx.post(self.address + path, json=body, timeout=30, verify=self._verify)

    def workers(self) -> list[int]:
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for thread in threads for pid in thread.read_text().split()]

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(timeout=20)
        self._reader.join(timeout=5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if found := re.search(r"running on (https?://\S+)", self.lines[-1]["message"]):
                self.address = found[1]
                self._ready.set()


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Keep how `rankrt serve` logs out of other tests."""
    loggers = [logging.getLogger(name) for name in ("", "rankrt", "uvicorn", "uvicorn.error")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    tiny_artifact(tmp_path / "served")
    server = Served(tmp_path / "served", "--workers", "1")
    yield server
    if server.process.poll() is None:
        server.stop()


def wait_until(is_true) -> None:
    limit = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_serving_killing_reloading_and_stopping(served: Served, tmp_path: Path):
    """One server for all of it: starting one takes a second."""
    expected = served.post("/rerank", BODY).json()

    (worker,) = served.workers()
    os.kill(worker, signal.SIGKILL)
    assert [served.post("/rerank", BODY).json() for _ in range(3)] == [expected] * 3
    assert served.workers() != [worker]
    assert "rankrt_worker_restarts_total 1.0" in served.get("/metrics").text

    tiny_artifact(tmp_path / "served", max_length=32)
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: served.get("/info").json()["max_input_length"] == 32)

    (worker,) = served.workers()
    assert served.stop() == -signal.SIGTERM, "uvicorn ends by the signal when everything is closed"
    errors = [line["message"] for line in served.lines if line["level"] == "error"]
    assert errors, "SIGKILL is told"
    assert [
        said for said in errors if not re.match(r"a run of \d+ rows failed|worker \d+ was ended by SIGKILL", said)
    ] == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_what_was_asked_is_answered_before_the_end(served: Served):
    answers: list[Any] = []

    def ask() -> None:
        answers.append(served.post("/rerank", {"query": "one", "texts": [f"two {'four ' * i}" for i in range(3000)]}))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: "rankrt_requests_in_flight 2.0" in served.get("/metrics").text)
    assert served.stop() == -signal.SIGTERM
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]


def test_it_serves_tls(tmp_path: Path):
    tiny_artifact(tmp_path / "served")
    certificate, key = certificate_in(tmp_path / "tls")
    verify = ssl.create_default_context(cafile=certificate)
    arguments = ["--ssl-certfile", certificate, "--ssl-keyfile", key, "--workers", "0"]
    server = Served(tmp_path / "served", *arguments, verify=verify)
    try:
        assert server.address.startswith("https://")
        assert server.post("/rerank", BODY).status_code == 200
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing"),
        (["{folder}", "--api-key-file", "missing"], "--api-key-file missing cannot be read"),
        (["{folder}", "--ssl-certfile", "missing"], "--ssl-certfile and --ssl-keyfile belong together"),
        (["{folder}", "--ssl-certfile", "missing", "--ssl-keyfile", "missing"], "--ssl-certfile missing cannot be"),
        (["{folder}", "--ssl-certfile", "{text}", "--ssl-keyfile", "{text}"], "one is not PEM, or has a password"),
        (["{folder}", "--port", "{busy}"], "--port {busy} cannot be listened on: Address already in use"),
        (["{folder}", "--host", "no.such.host.invalid"], "--host no.such.host.invalid is not an address or a name"),
        (["{folder}", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8080 cannot be listened on: Cannot assign"),
        (["{folder}", "--max-length", "4"], "--max-length 4 cannot hold a pair"),
        (["{folder}", "--query-max-length", "65"], "--query-max-length 65 is more than --max-length 64"),
        (["{folder}", "--query-max-length", "9", "--truncation", "longest_first"], "remove --query-max-length"),
        (["{folder}", "--device", "npu"], "--device npu, expected"),
        (["{folder}", "--precision", "int8"], "int8"),
        (["{folder}@fp32", "{folder}@int8"], "int8"),
        (["{folder}@fp32", "{folder}@fp32"], "two models are called tiny@fp32"),
        (["{folder}", "--revision", "main"], "main is a state of a hub repository, but {folder} is a folder"),
        (
            ["{folder}", "--gpu-memory-gb", "2"],
            "--gpu-memory-gb is for CUDA only, not for --device auto, which took 'cpu' here",
        ),
        (["{folder}", "--threads", "999"], "--threads 999 is more than the"),
        (["{folder}", "--workers", "999"], "--workers 999 is more than the"),
        (["{folder}", "--max-body-mb", "300"], "--max-body-mb 300 is more than --max-inflight-mb"),
        (["a={folder}", "a={folder}"], "two models are called a; give one another name: NAME=MODEL"),
        (["{folder}", "{folder}"], "two models are called tiny; give one another name: NAME=MODEL"),
        (["={folder}"], "has an empty name or an empty model; write NAME=MODEL"),
        (["a="], "MODEL a= has an empty name or an empty model; write NAME=MODEL"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "served"
    tiny_artifact(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"folder": folder, "busy": taken.getsockname()[1], "text": folder / "tokenizer.json"}
        assert main(["serve", *(argument.format(**names) for argument in arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rankrt: error: ")
    assert said.format(**names) in line


def test_a_key_of_another_certificate_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_artifact(tmp_path / "served")
    ours, theirs = (certificate_in(tmp_path / name) for name in ("ours", "theirs"))
    arguments = ["--ssl-certfile", str(ours[0]), "--ssl-keyfile", str(theirs[1])]
    assert main(["serve", str(tmp_path / "served"), *arguments]) == 1
    assert capsys.readouterr().err.endswith("cannot be used: they do not match\n")


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_key_of_the_environment_does_not_serve_everyone(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tiny_artifact(tmp_path / "served")
    monkeypatch.setenv("RANKRT_API_KEY", value)
    assert main(["serve", str(tmp_path / "served")]) == 1
    assert "RANKRT_API_KEY is set but empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "-1"],
        ["--cache-mb", "x"],
        ["--timeout-ms", "0"],
        ["--timeout-ms", "nan"],
        ["--max-length", "0"],
        ["--port", "70000"],
        ["--gpu-memory-gb", "nan"],
        ["--gpu-memory-gb", "-1"],
        ["--otlp-endpoint", "nonsense"],
        ["--otlp-endpoint", "http://host:port/"],
        ["--cors-origin", "example.com"],
        ["--cors-origin", "https://example.com/"],
        [],
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["serve", *([] if not arguments else ["folder"]), *arguments]) == 2
    assert "_" not in capsys.readouterr().err.splitlines()[-1], "no name of a function of ours"


def test_the_help_has_a_section_for_each_kind_of_option_and_says_every_default(capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    sections = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert sections == [
        *("Arguments", "Network", "Access", "Model", "Text", "Workers", "Limits", "Observability", "Options")
    ]
    options = re.split(r"\n  (?=--)", text.partition("\nOptions:")[0])[1:]
    without = {option.split()[0] for option in options if "[default:" not in " ".join(option.split())}
    assert without == {"--ssl-certfile", "--ssl-keyfile", "--api-key-file", "--cors-origin", "--otlp-endpoint"}


def test_the_address_is_said_at_the_start_and_when_the_models_are_ready(served: Served):
    said = [line["message"] for line in served.lines]
    (start,) = [i for i, line in enumerate(said) if line.startswith(f"running on {served.address} ")]
    wait_until(lambda: f"ready at {served.address}" in [line["message"] for line in served.lines[start:]])


def test_the_log_is_text_for_a_terminal(tmp_path: Path):
    tiny_artifact(tmp_path / "served")
    ours, theirs = os.openpty()
    command = [
        sys.executable,
        "-m",
        "rankrt.cli.main",
        "serve",
        str(tmp_path / "served"),
        "--port",
        "0",
        "--workers",
        "0",
    ]
    process = subprocess.Popen(command, stderr=theirs)
    os.close(theirs)
    try:
        with os.fdopen(ours) as terminal:
            assert re.match(r"[-\d]+ [:,\d]+ INFO +running on http://127.0.0.1:\d+ ", terminal.readline())
    finally:
        process.terminate()
        process.wait(timeout=20)
