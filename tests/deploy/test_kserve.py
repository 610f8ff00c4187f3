"""The runtime for KServe starts the server with options that it has, and probes paths that it answers."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")

from rankrt.server.cli import serve  # noqa: E402
from rankrt.server.limits import Limits  # noqa: E402
from tests.deploy.figures import SERVER_AND_MODEL, bytes_of  # noqa: E402

RUNTIME, SERVICE = yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "kserve" / "runtime.yaml").read_text())
(CONTAINER,) = RUNTIME["spec"]["containers"]


def test_the_server_knows_every_option():
    known = {name for parameter in serve.params for name in parameter.opts}
    assert {word for word in CONTAINER["args"] if word.startswith("--")} <= known
    assert CONTAINER["args"][0] == "{{.Name}}=/mnt/models", "the model has the name that KServe asks for"


def test_every_probe_asks_for_a_path_that_the_server_has(client: Any):
    paths = [CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert [client.get(path).status_code for path in paths] == [200, 200, 200]


def test_the_service_asks_for_the_format_of_the_runtime():
    formats = {each["name"] for each in RUNTIME["spec"]["supportedModelFormats"]}
    assert SERVICE["spec"]["predictor"]["model"]["modelFormat"]["name"] in formats


def test_a_pod_holds_the_model_and_has_no_rights_that_it_does_not_need():
    assert bytes_of(CONTAINER["resources"]["limits"]["memory"]) >= SERVER_AND_MODEL + Limits().most_memory
    assert CONTAINER["resources"]["limits"] == CONTAINER["resources"]["requests"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert CONTAINER["securityContext"]["runAsNonRoot"] is True
