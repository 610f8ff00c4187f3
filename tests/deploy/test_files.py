"""deploy/ fits the code: what it grants is what the limits take, and what it waits for is what a request may take."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")

from rankrt.server.http.connections import files_for  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
GIB = 1 << 30
# The server without requests, and a model of 568 M parameters in fp32: see the comments beside the figures.
SERVER_AND_MODEL = 2.8 * GIB


@pytest.fixture
def objects() -> dict[str, Any]:
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


@pytest.fixture
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    return dict(objects["Deployment"]["spec"]["template"]["spec"])


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return dict(found)


@pytest.fixture
def unit() -> dict[str, str]:
    lines = (line.partition("=") for line in (DEPLOY / "rankrt.service").read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in lines if not name.startswith("#")}


def options(arguments: list[str]) -> dict[str, str]:
    return {name: value for name, value in pairwise(arguments) if name.startswith("--")}


def test_the_memory_that_is_granted_holds_the_model_and_all_that_requests_may_take(container: Any, unit: Any):
    needed = SERVER_AND_MODEL + Limits().most_memory
    assert int(re.sub("Gi$", "", container["resources"]["limits"]["memory"])) * GIB >= needed
    assert int(re.sub("G$", "", unit["MemoryMax"])) * GIB >= needed, "systemd's G is a GiB"
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_a_request_that_was_taken_is_answered_before_a_pod_or_a_service_is_killed(pod: Any, container: Any, unit: Any):
    given = options(container["args"])
    drain, timeout = int(given["--drain-s"]), int(given["--timeout-ms"]) / 1000
    (before,) = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
    assert drain > timeout
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 20
    assert int(unit["TimeoutStopSec"]) >= Limits().timeout_ms / 1000 + 5 + 20
    stop_timeout = re.search(r"--stop-timeout (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert stop_timeout is not None
    assert int(stop_timeout[1]) >= Limits().timeout_ms / 1000 + 5 + 20


def test_a_service_may_have_the_files_and_threads_of_a_large_host(unit: Any):
    assert int(unit["LimitNOFILE"]) >= files_for(Limits().max_connections, n_threads=256)
    assert int(unit["TasksMax"]) >= 5 * 256 + 64


def test_nothing_is_sent_home(container: Any, unit: Any):
    assert {"name": "ORT_DISABLE_TELEMETRY", "value": "1"} in container["env"]
    assert unit["Environment"] == "ORT_DISABLE_TELEMETRY=1"
    assert re.search(r"^ENV .*\bORT_DISABLE_TELEMETRY=1\b", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_a_pod_has_no_rights_that_it_does_not_need(pod: Any, container: Any, objects: Any):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == writable
    assert objects["NetworkPolicy"]["spec"]["egress"] == []


def test_replicas_share_a_volume_and_survive_the_loss_of_a_node(objects: Any):
    assert objects["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert objects["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 2
    assert objects["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert "replicas" not in objects["Deployment"]["spec"], "the autoscaler decides"


def test_the_autoscaler_looks_at_a_figure_that_the_server_has(objects: Any):
    (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert f'"{metric["pods"]["metric"]["name"]}"' in (ROOT / "runtime/rankrt/server/telemetry/metrics.py").read_text()


def test_everything_is_about_the_same_pods_and_port(objects: Any, pod: Any, container: Any):
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    (port,) = container["ports"]
    probes = [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    assert {*probes, objects["Service"]["spec"]["ports"][0]["targetPort"]} == {port["name"]}


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
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE), "a number, so that runAsNonRoot can tell"


def test_systemd_understands_the_unit(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (DEPLOY / "rankrt.service").read_text()
    (tmp_path / "rankrt.service").write_text(text.replace("/opt/rankrt/bin/rankrt", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rankrt.service")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert "rankrt.service" not in found.stderr, found.stderr
