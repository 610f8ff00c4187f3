"""Nothing is sent home: not by the engine, not by what downloads models, in no process of ours."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rankrt.artifact.manifest import Artifact
from rankrt.backends.openvino import why_not_bf16
from rankrt.host.cpu import this_machine
from tests.support import tiny_artifact

# ONNX Runtime 1.32 calls 10, 15 and 24 s after it was imported.
WATCHED_S = 40
# All that a process of this test inherits. ONNX Runtime stays quiet where CI, GITHUB_ACTIONS or ten others are set, and
# keeps its device id where XDG_CACHE_HOME says: the controls would prove nothing there.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT", "TMPDIR", "RANKRT_CACHE", "HF_HUB_CACHE")
_LOAD = "from rankrt import Reranker; Reranker.load(sys.argv[1]).rank('one', ['two', 'three'])"
# Prints what decides whether the engine reports: the variable, as it is when the engine is looked for.
_LOOK = """
import os, sys
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print("engine", os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Look())
"""


@pytest.mark.parametrize(
    "entered",
    [
        _LOAD,
        "from rankrt.backends.session import import_onnxruntime; import_onnxruntime()",
        "from rankrt.compat import FlagReranker; FlagReranker(sys.argv[1], max_length=64)",
        "from rankrt.cli.main import main; main(['doctor', sys.argv[1]])",
        "from rankrt.server.workers.local import LocalWorker; from rankrt.cli.doctor import examine; "
        "[*examine(None, None)]",
        pytest.param("import rankrt_export.verify.tensorrt_on_cpu, onnxruntime", marks=pytest.mark.export),
    ],
)
def test_reports_are_off_before_the_engine_is_imported_whatever_is_entered_first(artifact: Artifact, entered: str):
    if "rankrt_export" in entered:
        pytest.importorskip("rankrt_export.verify.tensorrt_on_cpu", reason="needs the export extra")
    assert "engine 1" in _run(_LOOK + entered, str(artifact.folder)).stdout.splitlines()


def test_benchmarks_turn_off_what_they_measure():
    shown = _run("import benchmarks, os, sys; print(os.environ['DO_NOT_TRACK'], sys.modules['openvino_telemetry'])")
    assert shown.stdout == "1 None\n"


def test_the_hub_is_asked_for_the_files_and_nothing_else():
    shown = _run("import rankrt; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)")
    assert shown.stdout == "True\n"


@pytest.mark.parametrize(("given", "kept"), [("0", "0"), ("", "1"), (None, "1"), ("true", "true")])
def test_what_the_user_set_is_respected_and_an_empty_value_is_none(given: str | None, kept: str):
    shown = _run("import rankrt, os; print(os.environ['ORT_DISABLE_TELEMETRY'])", ORT_DISABLE_TELEMETRY=given)
    assert shown.stdout == f"{kept}\n"


def test_an_engine_that_was_imported_first_is_announced_once_since_nothing_stops_it_any_more(artifact: Artifact):
    """Neither the variable nor onnxruntime.disable_telemetry_events() changed the three calls of 1.32."""
    said = _run(f"import sys, onnxruntime; {_LOAD}; {_LOAD}", str(artifact.folder)).stderr
    if sys.platform == "linux":
        assert said.count("onnxruntime was imported before rankrt, so it may report this process to its maker") == 1
    assert _run(f"import sys, onnxruntime; {_LOAD}", str(artifact.folder), ORT_DISABLE_TELEMETRY="1").stderr == ""


@pytest.mark.slow
def test_nothing_calls_and_no_file_appears_in_forty_seconds(artifact: Artifact, tmp_path: Path):
    folder = str(artifact.folder)
    commands = {
        "library": [sys.executable, "-c", f"import sys, time; {_LOAD}; time.sleep(999)", folder],
        "command": [sys.executable, "-m", "rankrt.cli.main", "score", folder, "-"],
    }
    if all(map(importlib.util.find_spec, ("starlette", "uvicorn", "prometheus_client"))):
        commands["server"] = [sys.executable, "-m", "rankrt.cli.main", "serve", folder, "--port", "0", "--workers", "2"]
    if why_not_bf16(this_machine()) is None:
        both = str(tiny_artifact(tmp_path / "both", precisions=("fp32", "bf16")).folder)
        load = _LOAD.replace("sys.argv[1]", "sys.argv[1], precision='bf16'")
        commands["openvino"] = [sys.executable, "-c", f"import sys, time; {load}; time.sleep(999)", both]
    if importlib.util.find_spec("transformers"):
        export = "from rankrt_export.pipeline import export_into; from pathlib import Path"
        (tmp_path / "exported").mkdir()
        call = f"export_into('tiny_reranker/checkpoint', Path({str(tmp_path / 'exported')!r}))"
        commands["export"] = [sys.executable, "-c", f"import time; {export}; {call}; time.sleep(999)"]
    # One engine that may report called nobody in 160 s on a busy machine; of 22 others each called within 14 s.
    allowed = [sys.executable, "-c", "import rankrt, onnxruntime, time; time.sleep(999)"]
    controls = {f"control {number}": allowed for number in range(3)}
    with _watched(commands, tmp_path) as seen, _watched(controls, tmp_path, ORT_DISABLE_TELEMETRY="0") as reports:
        time.sleep(WATCHED_S)
        for _ in range(2 * WATCHED_S if sys.platform == "linux" else 0):
            if any(found.calls for found in reports.values()):
                break
            time.sleep(1)
    assert {name: found for name, found in seen.items() if found.calls or found.files} == {}
    if sys.platform == "linux":
        assert any("deviceid" in file for found in reports.values() for file in found.files)
        if not any(found.calls for found in reports.values()):
            pytest.skip("none of three engines that may report did so here, so that ours called nobody proves little")


def test_the_listener_sees_a_call_through_the_proxy(tmp_path: Path):
    call = "import time, urllib.request as r\ntry: r.urlopen('http://a.invalid/')\nexcept OSError: time.sleep(999)"
    with _watched({"call": [sys.executable, "-c", call]}, tmp_path) as seen:
        for _ in range(60):
            if seen["call"].calls:
                break
            time.sleep(1)
    assert seen["call"].calls[0].startswith(b"GET http://a.invalid/")


@dataclass
class _Seen:
    """What a process asked of the proxy, and the files that it left below its HOME."""

    calls: list[bytes] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


@contextmanager
def _watched(commands: dict[str, list[str]], folder: Path, **variables: str) -> Iterator[dict[str, _Seen]]:
    """Run processes, each with an empty HOME and a proxy that only listens."""
    seen, stops = {name: _Seen() for name in commands}, []
    try:
        for name, command in commands.items():
            home, proxy = folder / f"home of {name}", socket.create_server(("127.0.0.1", 0))
            home.mkdir()
            threading.Thread(target=_listen, args=(proxy, seen[name].calls), daemon=True).start()
            address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
            through = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address)
            process = subprocess.Popen(
                command,
                env=_environment() | through | variables | {"HOME": str(home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            stops.append((name, process, proxy, home))
        yield seen
    finally:
        for name, process, proxy, home in stops:
            ended = process.poll()
            process.kill()
            _, said = process.communicate()
            proxy.close()
            assert ended is None, f"{name} ended early: {said}"
            seen[name].files.extend(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def _listen(proxy: socket.socket, calls: list[bytes]) -> None:
    while True:
        try:
            connection, _ = proxy.accept()
        except OSError:  # closed: the test is over
            return
        with connection:
            connection.settimeout(5)
            calls.append(connection.recv(200))


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def _run(code: str, *arguments: str, **variables: str | None) -> "subprocess.CompletedProcess[str]":
    given = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *arguments],
        env=_environment() | given,
        capture_output=True,
        text=True,
        check=True,
    )
