"""What bodies cost in the server's process: bounded while they are worked on, given back afterwards."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra server")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from rankrt.server.failures import Failure  # noqa: E402
from rankrt.server.http import bodies  # noqa: E402
from rankrt.server.limits import BYTES_A_VALUE, MEMORY_A_BODY_BYTE, InFlight, Limits  # noqa: E402
from tests.server.support import serving  # noqa: E402
from tests.support import tiny_artifact  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 1 << 20
# What Python keeps in the largest form: 4 bytes a character as soon as one is beyond the first plane.
WIDE = "\U0001f43c" + "x" * (30 * MB)


def body(documents: list[str], query: str = "one") -> bytes:
    return json.dumps({"query": query, "documents": documents}, ensure_ascii=False).encode()


def megabytes(pid: int, name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextmanager
def server_process(folder: Path, cache: Path, most_bytes: int) -> Iterator[tuple[str, int]]:
    """Serve an artifact in a process that may not have more memory than this; yield its address and number."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = "import sys; from rankrt.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(folder), "--port", str(port), "--threads", "2"],
        env={**os.environ, "RANKRT_CACHE": str(cache)},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes)),
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(address)
        yield address, process.pid
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(address: str) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not start")


def post(address: str, content: bytes) -> int:
    headers = {"content-type": "application/json"}
    return int(httpx.post(f"{address}/v1/rerank", content=content, headers=headers, timeout=60).status_code)


def artifact_of_pieces(folder: Path) -> Path:
    """Write an artifact whose tokenizer cuts words into pieces, as those of real models do."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "x", "水", "one", "two", "nan"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tiny_artifact(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    # The memory that the chart in deploy/helm grants, of the server's process alone.
    folder = artifact_of_pieces(tmp_path_factory.mktemp("pieces") / "artifact")
    with server_process(folder, tmp_path_factory.mktemp("cache"), 4 << 30) as found:
        post(found[0], body(["two"]))
        yield found


BODIES = {
    "one document": body(["x" * (30 * MB)]),
    "one document, wide": body([WIDE]),
    "Chinese": body(["水" * (10 * MB)]),
    "a query": body(["two"], query=WIDE),
    "10,000 documents": body(["two two x one " * 200] * 10_000),
    "escapes": body(["x"]).replace(b"x", b"\\u6c34" * (5 * MB)),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_takes_no_more_memory_than_is_said_and_gives_it_back(process: tuple[str, int], name: str):
    (address, pid), content = process, BODIES[name]
    time.sleep(2.5)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = megabytes(pid, "VmRSS")
    assert post(address, content) == 200
    peak = megabytes(pid, "VmHWM")
    weight = len(content) + BYTES_A_VALUE * bodies.n_values(content)
    assert peak - before < MEMORY_A_BODY_BYTE * weight / MB + 30
    time.sleep(2.5)
    assert megabytes(pid, "VmRSS") < before + 0.25 * (peak - before) + 15


def test_a_text_that_can_only_be_read_whole_is_refused_before_it_takes_memory(process: tuple[str, int]):
    """The library would take 300 bytes for each of these characters, of which its vocabulary has none."""
    address, pid = process
    time.sleep(2.5)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before, content = megabytes(pid, "VmRSS"), body(["\u4e00" * (10 * MB)])
    assert post(address, content) == 422
    assert megabytes(pid, "VmHWM") - before < MEMORY_A_BODY_BYTE * len(content) / MB + 30


def test_millions_of_tiny_strings_are_refused_before_they_take_memory(process: tuple[str, int]):
    address, pid = process
    time.sleep(2.5)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before, content = megabytes(pid, "VmRSS"), b'{"query":"one","documents":[' + b'"a",' * (5 * MB) + b'"a"]}'
    assert post(address, content) == 422
    assert megabytes(pid, "VmHWM") - before < 3 * len(content) / MB


@pytest.mark.parametrize(
    ("content", "n"),
    [
        (b'{"query": "a", "documents": ["b", "c"]}', 7),
        (rb'["a\"b\"c"]', 2),
        (rb'["\\","\\"]', 2),
        (b'[{}, [], "{"]', 5),
    ],
)
def test_values_of_a_body_are_counted_without_decoding_it(content: bytes, n: int):
    assert bodies.n_values(content) == n


def test_too_many_values_are_refused_with_the_figures():
    in_flight = InFlight(Limits(max_documents=1))
    with in_flight.request() as body, pytest.raises(Failure, match=r"lists and objects.*101 \(limit 100\)"):
        body.add_values(101)


def test_values_count_as_bytes_until_a_request_is_answered():
    in_flight = InFlight(Limits(max_inflight_bytes=100))
    with in_flight.request() as body:
        body.add_values(4)
        assert in_flight.n_bytes == 4 * BYTES_A_VALUE
        with in_flight.request() as other, pytest.raises(Failure, match="limit 100"):
            other.add_values(2)
    assert in_flight.n_bytes == 0


def test_a_query_of_a_megabyte_is_tokenized_once(tiny_folder: Path):
    content = body([f"two {i}" for i in range(2000)], query="one " * 250_000)
    with serving(tiny_folder) as address:
        response = httpx.post(
            f"{address}/v1/rerank", content=content, headers={"content-type": "application/json"}, timeout=60
        )
    times = {name: int(response.headers[f"x-{name}-time"]) for name in ("tokenization", "compute", "total")}
    assert response.headers["x-rankrt-query-truncated"] == "true"
    assert times["tokenization"] < 1000  # a block of 32 pairs took 60 ms and there are 63
    assert times["compute"] <= times["total"]
