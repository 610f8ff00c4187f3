"""A few seconds of what benchmarks/server_soak.py does for half an hour."""

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
soak = pytest.importorskip("benchmarks.server_soak", reason="needs the source tree")


def test_overload_misbehaviour_and_a_killed_worker_harm_nobody(tiny_folder: Path):
    record = soak.soak(tiny_folder, 5.0)
    assert record["wrong"] == []
    assert record["statuses"]["200"] > 20
    assert record["n_workers_killed"] == record["worker_restarts"] == 1
    assert sum(record["faults"].values()) > 20
