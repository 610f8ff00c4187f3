"""The examples of docs/scaling.md, run as they stand with another model."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankrt.artifact.manifest import Artifact

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def run(section: str, artifact: Artifact) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL))
    exec(code.replace("./bge-m3", str(artifact.folder)), {"__name__": "example"})


def test_ray_data_runs(cluster: Any, artifact: Artifact, capsys: pytest.CaptureFixture[str]):
    import ray

    ray.init(address=cluster.address, log_to_driver=False, ignore_reinit_error=True)
    try:
        run("Ray Data", artifact)
    finally:
        ray.shutdown()
    assert "The giant panda is a bear." in capsys.readouterr().out


def test_ray_serve_runs(cluster: Any, artifact: Artifact, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("rankrt.server.ray_serve", reason="ray[serve] is not installed")
    import ray
    from ray import serve

    ray.init(address=cluster.address, log_to_driver=False, ignore_reinit_error=True)
    serve.start(http_options={"port": 0, "location": "NoServer"})
    try:
        run("Ray Serve", artifact)
    finally:
        serve.shutdown()
        ray.shutdown()
    assert capsys.readouterr().out.strip()


def test_spark_runs(artifact: Artifact, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    run("Spark", artifact)
    assert "score" in capsys.readouterr().out
