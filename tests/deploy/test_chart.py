"""The Helm chart: what it renders is valid, fits the server's limits, and refuses values of the wrong type by name."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")

from rankrt.server.cli import serve  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from tests.deploy.figures import SERVER_AND_MODEL, bytes_of  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="needs helm")
CHART = Path(__file__).parents[2] / "deploy" / "helm" / "rankrt"
# Everything that the chart can do, at once.
EVERYTHING = {
    "models": [
        {"name": "a", "claim": "models", "path": "bge"},
        {"name": "b", "hub": "owner/name", "revision": "abc"},
        {"name": "c", "container": "registry.example/model:1", "path": "/artifact"},
    ],
    "gpus": 1,
    "apiKeysSecret": "keys",
    "hubTokenSecret": "token",
    "scoreCacheMb": 64,
    "networkPolicy": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "service": {"headless": True},
    "podLabels": {"team": "search"},
    "podAnnotations": {"a": "b"},
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraArgs": ["--max-documents", "1000"],
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "imagePullSecrets": [{"name": "registry"}],
}


def helm(command: str, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "values.yaml").write_text(json.dumps(values))
    named = ["rankrt"] if command == "template" else []
    words = ["helm", command, *named, str(CHART), "--values", str(folder / "values.yaml")]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def rendered(folder: Path, **values: Any) -> dict[str, Any]:
    """Return the objects by kind. The headless service is left out."""
    done = helm("template", values, folder)
    assert done.returncode == 0, done.stderr
    found = [each for each in yaml.safe_load_all(done.stdout) if each["metadata"]["name"] != "rankrt-replicas"]
    return {each["kind"]: each for each in found}


def pod_of(objects: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def options_of(container: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in pairwise(container["args"]) if name.startswith("--")}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lints_it(tmp_path: Path, values: dict[str, Any]):
    done = helm("lint", values, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_kubernetes_schemas_know_every_field(tmp_path: Path, values: dict[str, Any]):
    if shutil.which("kubernetes-validate") is None:
        pytest.skip("needs kubernetes-validate")
    done = helm("template", values, tmp_path)
    # The operator's own kind is not Kubernetes', so no schema of Kubernetes has it.
    kept = [text for text in done.stdout.split("\n---\n") if "kind: ServiceMonitor" not in text]
    (tmp_path / "objects.yaml").write_text("\n---\n".join(kept))
    command = ["kubernetes-validate", "--strict", str(tmp_path / "objects.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (checked.stdout + checked.stderr).count(" passed ") >= 4


def test_a_pod_holds_the_model_and_all_that_requests_may_take(tmp_path: Path):
    _, container = pod_of(rendered(tmp_path))
    assert bytes_of(container["resources"]["limits"]["memory"]) >= SERVER_AND_MODEL + Limits().most_memory
    assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize("seconds", [60, 7])
def test_a_request_that_was_taken_is_answered_before_a_pod_is_killed(tmp_path: Path, seconds: int):
    pod, container = pod_of(rendered(tmp_path, timeoutSeconds=seconds))
    given = options_of(container)
    assert int(given["--timeout-ms"]) == 1000 * seconds
    (before,) = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
    assert int(given["--drain-s"]) > seconds
    assert pod["terminationGracePeriodSeconds"] >= before + int(given["--drain-s"]) + 20


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_a_pod_has_no_rights_that_it_does_not_need(tmp_path: Path, values: dict[str, Any]):
    pod, container = pod_of(rendered(tmp_path, **values))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for each in [container, *pod.get("initContainers", [])]:
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    written = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"cache", "tmp"}


def test_the_server_knows_every_option_that_a_pod_gives_it(tmp_path: Path):
    _, container = pod_of(rendered(tmp_path, **EVERYTHING))
    known = {name for parameter in serve.params for name in parameter.opts}
    given = {word for word in container["args"] if word.startswith("--")}
    assert given <= known
    assert container["args"][:3] == ["a=/claims/models/bge", "b=/models/b", "c=/models/c"]
    assert options_of(container)["--device"] == "cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_models_of_the_hub_and_of_containers_are_there_before_the_server(tmp_path: Path):
    pod, _ = pod_of(rendered(tmp_path, **EVERYTHING))
    download, copy = pod["initContainers"]
    assert download["command"][-3:] == ["owner/name", "abc", "/models/b"]
    compile(download["command"][2], "download", "exec")
    assert copy["command"] == ["cp", "-RL", "/artifact/.", "/models/c/"]
    assert copy["volumeMounts"] == [{"name": "models", "mountPath": "/models/c", "subPath": "c"}]


def test_everything_is_about_the_same_pods_and_port(tmp_path: Path):
    objects = rendered(tmp_path, **EVERYTHING)
    labels = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert labels.items() <= objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == labels
    _, container = pod_of(objects)
    (port,) = container["ports"]
    probes = [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    assert {*probes, objects["Service"]["spec"]["ports"][0]["targetPort"]} == {port["name"]}


def test_the_autoscaler_decides_and_looks_at_a_figure_that_the_server_has(tmp_path: Path, figures: Any):
    objects = rendered(tmp_path)
    assert "replicas" not in objects["Deployment"]["spec"]
    metrics = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    names = [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"]
    assert len(names) == 1
    assert names[0] in figures
    assert [metric["resource"]["name"] for metric in metrics if metric["type"] == "Resource"] == ["cpu"]
    alone = rendered(tmp_path, autoscaling={"enabled": False}, replicas=3)
    assert "HorizontalPodAutoscaler" not in alone
    assert alone["Deployment"]["spec"]["replicas"] == 3


def test_every_probe_asks_for_a_path_that_the_server_has(tmp_path: Path, client: Any):
    _, container = pod_of(rendered(tmp_path))
    paths = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert [client.get(path).status_code for path in paths] == [200, 200, 200]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cpus": "four"}, "'/cpus': got string, want integer"),
        ({"cpus": 3.5}, "'/cpus': got number, want integer"),
        ({"models": "bge-m3"}, "'/models': got string, want array"),
        ({"models": []}, "'/models': minItems"),
        ({"models": [{"name": "a"}]}, "'/models/0': missing property 'claim'"),
        ({"models": [{"name": "a", "claim": "b", "hub": "c/d"}]}, "'/models/0'"),
        ({"precision": "int9"}, "'/precision': value must be one of"),
        ({"memory": 6}, "'/memory': got number, want string"),
        ({"autoscaling": {"metric": "queue"}}, "'/autoscaling/metric': value must be one of"),
        ({"autoscaling": {"max": 1}}, "autoscaling.max is 1, which is less than autoscaling.min, 2; raise it"),
        ({"replica": 3}, "additional properties 'replica' not allowed"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_name(tmp_path: Path, values: dict[str, Any], said: str):
    done = helm("template", values, tmp_path)
    assert done.returncode != 0
    assert said in done.stderr
