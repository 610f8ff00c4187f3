"""What happens to a server, under load: nothing wrong, nothing unanswered, and all as it was when it is over.

`python -m benchmarks.studies.server_soak` does the same for half an hour, beside overload and clients that misbehave.
"""

import ast
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
crowd = pytest.importorskip("benchmarks.harness.crowd", reason="needs the source tree")
faults = pytest.importorskip("benchmarks.studies.faults", reason="needs the source tree")

import rankrt  # noqa: E402
from rankrt.kernels import kernels_in_use  # noqa: E402
from tests.support import POINTS, tiny_artifact  # noqa: E402

HOLD_S = 1.0
RECOVERED_S = 40.0
# Weights that are not kept inside the graph, and mapped.
WEIGHTS = np.concatenate([POINTS, np.zeros(200_000, np.float32)])

# Where a worker loads from decides what harms it: the prepared model, or the artifact itself.
PREPARED = ["killed", "paused", "artifact away", "weights cut", "disk full", "no descriptors", "no memory", "reloaded"]
FROM_ARTIFACT = [
    "crashed",
    "artifact away",
    "artifact replaced",
    "artifact unreadable",
    "weights cut",
    "no threads",
    "small files",
]
WITH_KERNELS = ["killed", "artifact away", "weights cut", "no memory"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("faults") / "tiny", points={"fp32": WEIGHTS}).folder


@pytest.fixture(scope="module")
def cases(artifact: Path) -> list[Any]:
    made: list[Any] = crowd.make_cases(artifact)
    return made


def opened(artifact: Path, cases: list[Any], *options: str) -> Iterator[Any]:
    """A server that has answered for a while, so that its memory is what it keeps."""
    with faults.staged(artifact, "--workers", "1", "--threads", "2", "--timeout-ms", "10000", *options) as stage:
        for case in cases:
            crowd.post(stage.server.port, case.body())
        yield stage


@pytest.fixture(scope="module")
def prepared(artifact: Path, cases: list[Any]) -> Iterator[Any]:
    yield from opened(artifact, cases)


@pytest.fixture(scope="module")
def from_artifact(artifact: Path, cases: list[Any]) -> Iterator[Any]:
    yield from opened(artifact, cases, "--no-prepare")


@pytest.mark.parametrize("name", PREPARED)
def test_a_fault_loses_no_request_and_leaves_no_trace(prepared, cases: list[Any], name: str):
    survive(prepared, cases, name)


@pytest.mark.parametrize("name", FROM_ARTIFACT)
def test_a_fault_without_a_prepared_model_loses_no_request_and_leaves_no_trace(
    from_artifact, cases: list[Any], name: str
):
    survive(from_artifact, cases, name)


@pytest.fixture(scope="module")
def with_kernels(tmp_path_factory: pytest.TempPathFactory, cases: list[Any]) -> Iterator[Any]:
    """A server of an artifact whose int8 has no graph but the one for rankrt's kernels."""
    artifact = tiny_artifact(tmp_path_factory.mktemp("kernels") / "tiny", for_kernels=["int8"])
    yield from opened(artifact.folder, cases, "--precision", "int8")


@pytest.mark.skipif(kernels_in_use() is None, reason="no library of kernels for this processor")
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_a_fault_with_kernels_loses_no_request_and_leaves_no_trace(with_kernels, cases: list[Any], name: str):
    survive(with_kernels, cases, name)


def survive(stage, cases: list[Any], name: str) -> None:
    """Harm a server under load, and check all that clients and operators see."""
    found, port = crowd.Findings(), stage.server.port
    n_descriptors, server_mb = stage.n_descriptors(), stage.server_mb()
    loops = [lambda: crowd.ask(port, cases, found)] * 3 + [lambda: crowd.check_readiness(port, cases, found)]
    with ExitStack() as stack:
        try:
            stack.enter_context(crowd.Crowd(loops, found))
            time.sleep(0.2)
            with faults.FAULTS[name](stage):
                time.sleep(HOLD_S)
        except faults.CannotTry as reason:
            pytest.skip(str(reason))
        assert faults.recovered_s(stage, RECOVERED_S) is not None, "it is not ready again"
        n_answered = found.statuses["200"]
        limit = time.monotonic() + 10
        while found.statuses["200"] < n_answered + 10 and time.monotonic() < limit:
            time.sleep(0.01)
    assert found.wrong == []
    assert found.statuses["200"] >= n_answered + 10, "it answers again"
    figures = stage.server.metrics()
    assert figures["rankrt_workers_ready"] == 1
    assert figures["rankrt_queue_rows"] == figures["rankrt_requests_in_flight"] == 0
    assert stage.n_descriptors() <= n_descriptors
    assert stage.server_mb() < server_mb * 1.1


def test_a_server_starts_although_there_is_no_room_for_a_prepared_model(artifact: Path, cases: list[Any]):
    with ExitStack() as stack:
        with faults.staged(artifact, "--workers", "1") as stage:
            if not stage.has_own_disk:
                pytest.skip("needs the right to mount a tmpfs of its own for the cache")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(faults, "_DISK_MB", 1)  # of which the prepared model takes 1.3
        stage = stack.enter_context(faults.staged(artifact, "--workers", "1"))
        found = crowd.Findings()
        assert crowd.ask(stage.server.port, cases, found) == 200
        assert found.wrong == []


def test_no_clock_that_can_be_set_decides_anything():
    """Deadlines and pauses are measured by the monotonic clock; the other one is only told to people and protocols."""
    told_only = {"cli/cache.py", "server/models.py", "server/telemetry/logs.py", "server/telemetry/tracing.py"}
    told_only |= {"server/dialects/vllm.py", "server/dialects/infinity.py"}
    folder = Path(rankrt.__file__).parent
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("time", "time_ns", "now", "utcnow", "today", "fromtimestamp")
        if ast.unparse(node.value) in ("time", "datetime", "datetime.datetime", "datetime.date", "date")
    }
    assert found == told_only
