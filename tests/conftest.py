"""What every test gets: a cache of its own, no hub, and tiny artifacts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact
from tests.support import tiny_artifact

# What the clients' packages read before they report to their makers, or fetch a list of prices.
os.environ |= {"DO_NOT_TRACK": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

# How long an example takes says how busy the machine is; that code is fast is shown by benchmarks/.
settings.register_profile("rankrt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rankrt")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's caches out of the tests, and the tests out of the user's caches."""
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.getbasetemp() / "hub"))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny")


@pytest.fixture
def reranker(artifact: Artifact) -> Iterator[Reranker]:
    with Reranker.load(artifact.folder) as loaded:
        yield loaded
