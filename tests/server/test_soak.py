"""A few seconds of what benchmarks/studies/server_soak.py does for half an hour."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.support import serving

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
crowd = pytest.importorskip("benchmarks.harness.crowd", reason="needs the source tree")
soak = pytest.importorskip("benchmarks.studies.server_soak", reason="needs the source tree")


def test_overload_misbehaviour_and_a_killed_worker_harm_nobody(tiny_folder: Path):
    record = soak.soak(tiny_folder, 5.0)
    assert record["wrong"] == []
    assert record["statuses"]["200"] > 20
    assert record["host_faults"]["killed"] == 1
    assert record["worker_restarts"] >= 1
    assert sum(record["faults"].values()) > 20
    assert soak.summary(record).endswith("\npassed")


def test_a_server_that_answers_wrongly_does_not_pass(tiny_folder: Path, tmp_path: Path):
    """Other scores are expected than the ones that are served."""
    found = crowd.Findings()
    cases = [replace(case, scores=[score + 1 for score in case.scores]) for case in crowd.make_cases(tiny_folder)[:2]]
    with serving(tiny_folder) as address:
        crowd.ask(int(address.rpartition(":")[2]), cases, found)
    assert found.wrong == ["wrong scores"]
