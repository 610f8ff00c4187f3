"""deploy/ fits the code: what it grants is what the limits take, and what it waits for is what a request may take."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")

from rankrt.server.http.connections import files_for  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from tests.deploy.figures import SERVER_AND_MODEL, bytes_of  # noqa: E402

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def unit() -> dict[str, str]:
    lines = (line.partition("=") for line in (DEPLOY / "rankrt.service").read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in lines if not name.startswith("#")}


def test_a_service_has_the_memory_of_the_model_and_of_all_requests(unit: Any):
    assert bytes_of(unit["MemoryMax"]) >= SERVER_AND_MODEL + Limits().most_memory


def test_a_request_that_was_taken_is_answered_before_a_service_or_a_container_is_killed(unit: Any):
    needed = Limits().timeout_ms / 1000 + 5 + 20
    assert int(unit["TimeoutStopSec"]) >= needed
    stop_timeout = re.search(r"--stop-timeout (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert stop_timeout is not None
    assert int(stop_timeout[1]) >= needed
    composed = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    assert int(composed["services"]["rankrt"]["stop_grace_period"].rstrip("s")) >= needed


def test_a_service_may_have_the_files_and_threads_of_a_large_host(unit: Any):
    assert int(unit["LimitNOFILE"]) >= files_for(Limits().max_connections, n_threads=256)
    assert int(unit["TasksMax"]) >= 5 * 256 + 64


def test_nothing_is_sent_home(unit: Any):
    assert unit["Environment"] == "ORT_DISABLE_TELEMETRY=1"
    assert "ORT_DISABLE_TELEMETRY=1" in (DEPLOY / "Dockerfile").read_text()


def test_the_image_is_built_from_what_it_needs_and_nothing_else():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = {
        name for names in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE) for name in names.split()
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_image_asks_itself_without_a_proxy_and_stops_by_a_signal_that_drains():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "STOPSIGNAL SIGTERM" in dockerfile
    (check,) = re.findall(r"^HEALTHCHECK .*$", dockerfile, re.MULTILINE)
    assert "ProxyHandler({})" in check
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", dockerfile, re.MULTILINE), "a number, so that runAsNonRoot can tell"


def test_the_image_is_built_from_a_base_that_stays_the_same():
    (base,) = re.findall(r"^ARG PYTHON=(.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)


def test_both_flavours_of_the_image_are_extras_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (packages,) = re.findall(r'"\.\[\$\{FLAVOUR\},(.*?)\]"', (DEPLOY / "Dockerfile").read_text())
    assert {"cpu", "gpu", *packages.split(",")} <= extras.keys()


def test_hadolint_finds_nothing_in_the_dockerfile():
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint")
    found = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_systemd_understands_the_unit(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (DEPLOY / "rankrt.service").read_text()
    (tmp_path / "rankrt.service").write_text(text.replace("/opt/rankrt/bin/rankrt", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rankrt.service")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert "rankrt.service" not in found.stderr, found.stderr
