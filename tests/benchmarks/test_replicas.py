"""The study of replicas: what it asks, and that a short run measures it with a real HAProxy."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.harness.front import has_haproxy
from benchmarks.studies import replicas
from rankrt.artifact.manifest import Artifact


def test_every_question_has_a_query_and_documents_of_its_own():
    bodies = [json.loads(body) for body in replicas.make_bodies(50, 3)]
    assert len({body["query"] for body in bodies}) == 50
    assert len({text for body in bodies for text in body["texts"]}) == 150
    assert replicas.make_bodies(50, 3) == replicas.make_bodies(50, 3), "the same in every run"


@pytest.mark.skipif(not has_haproxy(), reason="needs HAProxy 2.6 or newer")
def test_a_run_records_the_cache_and_the_latencies(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "record.json"
    words = [
        "--artifact",
        str(artifact.folder),
        "--servers",
        "1",
        "--seconds",
        "0.5",
        "--questions",
        "20",
        "--requests",
        "40",
    ]
    monkeypatch.setattr(sys, "argv", ["replicas", *words, "--rate", "5", "--rounds", "1", "-o", str(output)])
    replicas.main()
    record = json.loads(output.read_text())
    assert [(case["servers"], case["backend"]) for case in record["cases"]] == [(1, "by_load"), (1, "by_query")]
    for case in record["cases"]:
        assert 0 <= case["cache_hit_share"] <= 1
        assert 0 < case["p50_ms"] <= case["p99_ms"]
        assert case["goodput_per_s"] > 0
        assert case["server_cpu_ms"] > 0
