"""compose, Prometheus' rules and Grafana's dashboard ask for figures that a real server has."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
httpx = pytest.importorskip("httpx", reason="needs httpx")
served = pytest.importorskip("benchmarks.harness.served", reason="needs the source tree")

from tests.server.support import wait_until  # noqa: E402

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
DASHBOARD = COMPOSE / "grafana" / "dashboards" / "rankrt.json"
# Prometheus adds these to what it reads.
ADDED = {"__name__", "instance", "job", "le", "up"}


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((COMPOSE / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


QUERIES = [
    *((panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]),
    *((rule["alert"], rule["expr"]) for rule in rules()),
]


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_asks_for_figures_and_labels_that_the_server_has(figures: dict[str, set[str]], title: str, query: str):
    names = set(re.findall(r"\b(?:rankrt|process|up)[a-z_]*\b", re.sub(r"\{[^}]*\}|\"[^\"]*\"", "", query)))
    assert names
    assert names <= figures.keys() | ADDED
    labels = {label for group in re.findall(r"\{(.*?)\}", query) for label in re.findall(r"(\w+)\s*[=!]", group)}
    labels |= {label.strip() for group in re.findall(r"by \((.*?)\)", query) for label in group.split(",")}
    assert labels <= ADDED.union(*(figures.get(name, set()) for name in names))


def test_every_panel_explains_itself_and_has_a_place_of_its_own():
    assert all(panel["description"].endswith(".") for panel in panels())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)


def test_every_alert_says_what_to_do():
    for rule in rules():
        assert rule["annotations"]["description"].endswith(".")
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_promtool_understands_the_rules_and_every_query(tmp_path: Path):
    # Grafana puts a duration in place of its variable, and a pattern in place of the other.
    recorded = [
        {"record": f"panel:{i}", "expr": query.replace("$__rate_interval", "1m").replace("$instance", ".*")}
        for i, (_, query) in enumerate(QUERIES)
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}))
    checks = [
        ["rules", COMPOSE / "alerts.yml"],
        ["rules", tmp_path / "panels.yml"],
        ["config", COMPOSE / "prometheus.yml"],
    ]
    for kind, file in checks:
        command = ["promtool", "check", str(kind), str(file)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_an_alert_fires_when_requests_are_refused_even_if_none_is_answered(tmp_path: Path):
    refused = {"series": 'rankrt_errors_total{instance="%s", dialect="tei", kind="overloaded"}', "values": "0+6x20"}
    answered = {"series": 'rankrt_requests_total{instance="%s", dialect="tei", status="200"}', "values": "0+%dx20"}
    series = [
        {**refused, "series": refused["series"] % "all"},
        {**refused, "series": refused["series"] % "some"},
        {"series": answered["series"] % "some", "values": answered["values"] % 54},
        {**refused, "series": refused["series"] % "few"},
        {"series": answered["series"] % "few", "values": answered["values"] % 600},
    ]
    said = {"all": "100%", "some": "10%"}
    alerts = [
        {
            "exp_labels": {"severity": "page", "instance": name},
            "exp_annotations": {
                "summary": f"{name} refuses {share} of its requests",
                "description": "Add replicas, or lower the number of documents of a request.",
            },
        }
        for name, share in said.items()
    ]
    test = {
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [{"eval_time": "15m", "alertname": "RankrtRefuses", "exp_alerts": alerts}],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(COMPOSE / "alerts.yml")], "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus, of Debian's package prometheus")
def test_every_panel_shows_something_of_a_server_that_was_asked(client: Any, tmp_path: Path):
    target = str(client.base_url.netloc.decode())
    scraped = {"job_name": "rankrt", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scraped]}))
    port = served.free_port()
    command = ["prometheus", "--config.file", str(tmp_path / "prometheus.yml"), "--storage.tsdb.path", str(tmp_path)]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    queries = {(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]}

    def is_empty(query: str) -> bool:
        asked = query.replace("$__rate_interval", "10s").replace("$instance", ".*")
        answer = client.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": asked}).json()
        return not any(row["value"][1] != "NaN" for row in answer["data"]["result"])

    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: is_up(client, port))
            limit = time.monotonic() + 20
            while queries and time.monotonic() < limit:
                for body in ({"query": "one", "texts": ["two " * 500]}, {"query": "one"}):
                    client.post("/rerank", json=body)
                queries = {(title, query) for title, query in queries if is_empty(query)}
        finally:
            process.terminate()
    assert queries == set()


def is_up(client: Any, port: int) -> bool:
    try:
        return bool(client.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200)
    except httpx.ConnectError:
        return False


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_compose_understands_the_file_and_asks_for_a_model(tmp_path: Path):
    command = ["docker-compose", "-f", str(COMPOSE / "compose.yaml"), "config", "--format", "json"]
    without = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "set MODEL to the folder of an artifact" in without.stderr
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "MODEL": str(tmp_path)}
    )
    services = json.loads(done.stdout)["services"]
    assert services["rankrt"]["read_only"] is True
    sources = [volume["source"] for each in services.values() for volume in each["volumes"] if volume["type"] == "bind"]
    assert [source for source in sources if not Path(source).exists()] == []
