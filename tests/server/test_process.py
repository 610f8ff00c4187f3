"""Workers as processes: the same scores, and life after SIGKILL."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankrt import ArtifactError
from rankrt.artifact import open_artifact
from rankrt.devices import Device
from rankrt.server.process import ProcessWorker
from rankrt.server.workers import LocalWorker, ModelFiles, Run, RunFailed, WorkerLost


def files_of(folder: Path, key: str = "0") -> ModelFiles:
    artifact = open_artifact(folder)
    variant = artifact.manifest.variants[0]
    return ModelFiles(key=key, folder=artifact.folder, variant=variant, device=Device("cpu"), prepare=True)


def run_of(*rows: list[int], key: str = "0", is_wide: bool = False) -> Run:
    ids = [np.array(row, np.int32) for row in rows]
    return Run(key=key, rows=ids, passage_starts=[1] * len(rows), is_wide=is_wide)


def test_a_process_loads_runs_unloads_and_comes_back_after_it_was_killed(tiny_folder: Path, tmp_path: Path):
    """One process for all of it: starting one takes half a second."""
    local, worker = LocalWorker(2), ProcessWorker(2)
    try:
        assert worker.load(files_of(tiny_folder)) == local.load(files_of(tiny_folder))
        for run in (run_of([5, 6], [7], [8] * 50), run_of([5], is_wide=True)):
            assert worker.run(1, run).tolist() == local.run(0, run).tolist()
        with pytest.raises(RunFailed, match="the engine failed on 1 rows"):
            worker.run(0, run_of([5], key="unknown"))
        with pytest.raises(ArtifactError, match="is not a rankrt artifact"):
            worker.load(replace(files_of(tiny_folder, key="1"), folder=tmp_path))

        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost) as lost:
            worker.run(0, run_of([5]))
        before = worker.pid
        worker.revive(lost.value.life)
        worker.revive(lost.value.life)
        assert (worker.life, worker.pid != before) == (2, True)
        assert worker.run(1, run_of([5, 6])).tolist() == [3.0]
        worker.unload("0")
        with pytest.raises(RunFailed):
            worker.run(0, run_of([5]))
    finally:
        worker.close()
        local.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_a_process_ends_when_its_server_does():
    worker = ProcessWorker(1)
    worker._control.close()
    limit = time.monotonic() + 10
    while worker._process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    worker.close()
