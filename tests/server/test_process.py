"""Workers as processes: the same scores, and what becomes of one that ends, hangs or finds other files."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rankrt import ArtifactError
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from rankrt.server.workers.local import ArtifactReplaced, LocalWorker, Run, RunFailed, WorkerLost
from rankrt.server.workers.process import ProcessWorker, _Rows, _serve_lane
from tests.server.support import model_files, run_of, wait_until
from tests.support import POINTS, tiny_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    return tiny_artifact(tmp_path / "tiny")


@pytest.fixture
def worker() -> Iterator[ProcessWorker]:
    worker = ProcessWorker(2, longest_run_s=1.0)
    yield worker
    worker.close()


def kill(worker: ProcessWorker, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(worker.pid, number)
    wait_until(lambda: worker.outage is not None)


def move_away(artifact: Artifact) -> Path:
    return artifact.folder.rename(artifact.folder.with_name("away"))


def test_a_process_answers_as_this_one_does(artifact: Artifact, worker: ProcessWorker, tmp_path: Path):
    local, files = LocalWorker(2), model_files(artifact)
    assert worker.load(files) == local.load(files)
    for run in (run_of([5, 6], [7], [8] * 50), run_of([5], is_wide=True)):
        assert worker.run(1, run).tolist() == local.run(0, run).tolist()
    with pytest.raises(RunFailed, match="a run of 1 rows failed"):
        worker.run(0, run_of([5], key="unknown"))
    other = replace(artifact, folder=tmp_path / "missing", identity="0" * 64)
    with pytest.raises(ArtifactError, match="rankrt artifact"):
        worker.load(model_files(other, key="1"))
    assert (worker.can_run("0"), worker.can_run("1")) == (True, False)
    worker.unload("0")
    with pytest.raises(RunFailed):
        worker.run(0, run_of([5]))
    local.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_one_that_was_killed_comes_back_with_its_model(
    artifact: Artifact, worker: ProcessWorker, number: signal.Signals, caplog: pytest.LogCaptureFixture
):
    worker.load(model_files(artifact))
    before = worker.pid
    os.kill(before, number)
    with pytest.raises(WorkerLost, match=f"was ended by {number.name}"):
        worker.run(0, run_of([5]))
    assert not worker.can_run("0"), "nothing runs before the model is loaded"
    wait_until(lambda: worker.outage is None)
    assert (worker.n_restarts, worker.pid != before) == (1, True)
    assert worker.run(1, run_of([5, 6])).tolist() == [3.0]
    assert f"worker {before} was ended by {number.name}" in caplog.text


def test_an_idle_one_that_was_killed_is_missed_at_once(artifact: Artifact, worker: ProcessWorker):
    """Readiness must not wait for a request to find out."""
    worker.load(model_files(artifact))
    told: list[object] = []
    worker.watch(lambda: told.append(worker.outage))
    kill(worker)
    wait_until(lambda: worker.outage is None)
    assert worker.run(0, run_of([5, 6])).tolist() == [3.0]
    assert isinstance(told[0], WorkerLost) and told[-1] is None


def test_one_whose_artifact_is_away_is_not_here_before_that_is_back(
    artifact: Artifact, worker: ProcessWorker, caplog: pytest.LogCaptureFixture
):
    worker.load(model_files(artifact, prepare=False))
    away = move_away(artifact)
    kill(worker)
    wait_until(lambda: isinstance(worker.outage, ArtifactError))
    assert not worker.can_run("0")
    assert str(artifact.folder) in caplog.text
    away.rename(artifact.folder)
    wait_until(lambda: worker.outage is None)
    assert worker.run(0, run_of([5, 6])).tolist() == [3.0]


def test_one_whose_artifact_is_away_needs_no_more_than_the_prepared_model(artifact: Artifact, worker: ProcessWorker):
    worker.load(model_files(artifact))
    move_away(artifact)
    kill(worker)
    wait_until(lambda: worker.outage is None)
    assert worker.run(0, run_of([5, 6])).tolist() == [3.0]


@pytest.mark.parametrize("prepare", [True, False])
def test_no_other_bytes_are_loaded_under_the_name_of_those_of_before(
    artifact: Artifact, worker: ProcessWorker, prepare: bool
):
    worker.load(model_files(artifact, prepare=prepare))
    shutil.rmtree(artifact.folder)
    other = tiny_artifact(artifact.folder, points={"fp32": POINTS * 2})
    kill(worker)
    if prepare:
        wait_until(lambda: worker.outage is None)
        assert worker.run(0, run_of([5, 6])).tolist() == [3.0]
    else:
        wait_until(lambda: isinstance(worker.outage, ArtifactReplaced))
    worker.load(model_files(other, key="1", prepare=prepare))
    worker.unload("0")
    wait_until(lambda: worker.outage is None)
    assert worker.run(0, run_of([5, 6], key="1")).tolist() == [6.0]


def test_one_whose_mapped_file_is_cut_ends_says_so_and_comes_back_with_the_file(
    artifact: Artifact, worker: ProcessWorker, caplog: pytest.LogCaptureFixture
):
    """Weights are mapped, and a page that is no longer there is SIGBUS."""
    artifact = tiny_artifact(artifact.folder, points={"fp32": np.repeat(POINTS, 100_000)})
    worker.load(model_files(artifact, prepare=False))
    weights = artifact.folder / "points.fp32.data"
    content = weights.read_bytes()
    os.truncate(weights, 4096)
    with pytest.raises(WorkerLost, match="SIGBUS"):
        worker.run(0, run_of([500_000]))
    wait_until(lambda: isinstance(worker.outage, ArtifactError))
    assert "was cut or changed" in str(worker.outage)
    weights.write_bytes(content)
    wait_until(lambda: worker.outage is None)
    assert worker.run(0, run_of([500_000])).tolist() == [1.0]


def test_one_that_was_stopped_for_a_moment_goes_on(artifact: Artifact, worker: ProcessWorker):
    worker.load(model_files(artifact))
    os.kill(worker.pid, signal.SIGSTOP)
    timer = threading.Timer(0.3, os.kill, [worker.pid, signal.SIGCONT])
    timer.start()
    assert worker.run(0, run_of([5, 6])).tolist() == [3.0]
    timer.join()
    assert worker.n_restarts == 0


def test_one_that_hangs_is_ended_and_started_again(artifact: Artifact, worker: ProcessWorker):
    worker.load(model_files(artifact))
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="did not answer within 1 s"):
        worker.run(0, run_of([5, 6]))
    wait_until(lambda: worker.outage is None)
    assert worker.run(0, run_of([5, 6])).tolist() == [3.0]


def test_a_lane_that_ends_by_an_error_is_missed_at_once():
    """One that had no memory for a message: its request was waited for as long as a run may take, which is a minute."""

    class Short(LocalWorker):
        def run(self, lane: int, run: Run) -> Float32Array:
            raise MemoryError

    ours, theirs = Pipe()
    rows = _Rows(key="0", ids=b"", lengths=[0], passage_starts=[0], exits=[], is_wide=False)
    ours.send_bytes(msgspec.msgpack.encode(rows))
    with pytest.raises(MemoryError):
        _serve_lane(Short(1), 0, theirs)
    assert ours.poll(5), "it does not end"
    with pytest.raises(EOFError):
        ours.recv_bytes()


def test_one_that_ends_in_loading_is_an_error_that_says_how(artifact: Artifact, worker: ProcessWorker):
    def stop_the_child() -> None:
        wait_until(lambda: worker.pid > 0)
        os.kill(worker.pid, signal.SIGKILL)

    thread = threading.Thread(target=stop_the_child)
    thread.start()
    with pytest.raises(WorkerLost, match="SIGKILL, perhaps because memory was short"):
        worker.load(model_files(artifact))
    thread.join()


def test_closing_does_not_wait_for_a_load_that_hangs(artifact: Artifact, worker: ProcessWorker):
    worker.load(model_files(artifact))
    os.kill(worker.pid, signal.SIGSTOP)
    failures: list[Exception] = []

    def load() -> None:
        try:
            worker.load(model_files(artifact, key="1"))
        except WorkerLost as error:
            failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    time.sleep(0.1)
    started = time.monotonic()
    worker.close()
    thread.join()
    assert time.monotonic() - started < 3
    assert len(failures) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_a_process_ends_when_its_server_does(artifact: Artifact):
    """However that ends: its sockets are closed."""
    source = f"""
from pathlib import Path
from rankrt.artifact.manifest import open_artifact
from rankrt.server.workers.process import ProcessWorker
from tests.server.support import model_files
worker = ProcessWorker(1)
worker.load(model_files(open_artifact(Path({str(artifact.folder)!r}))))
print(worker.pid, flush=True)
import os
os._exit(0)
"""
    process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    stat = Path(f"/proc/{int(process.stdout)}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")
