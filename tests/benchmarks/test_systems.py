"""The table of systems leads somewhere, environments are pinned, and a process that fails ends with its reason."""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.environments import LOCKS, pinned, python_of
from benchmarks.harness.worker import Budget, SystemFailed, Worker
from benchmarks.suites.load import SERVERS
from benchmarks.systems import CONVERSIONS, PROGRAMS, SYSTEMS, all_entries, entry_of, members, open_system

BUDGET = Budget(n_threads=1, cpus=(0,), load_s=30, call_s=0.5)


def worker(system: str, folder: Path, budget: Budget = BUDGET) -> Worker:
    return Worker(f"tests.benchmarks.fakes:{system}", "", budget, folder / "log.txt", sys.executable)


def test_every_system_has_a_pinned_environment_and_what_it_is_given():
    environments = {entry.environment for entry in all_entries()}
    environments |= {made.environment for made in (*CONVERSIONS.values(), *PROGRAMS.values())}
    environments |= {server.environment for server in SERVERS.values()}
    assert environments - {""} == {lock.stem for lock in LOCKS.glob("*.txt")}
    assert {entry.given for entry in all_entries()} - {""} == set(CONVERSIONS)
    assert {server.program for server in SERVERS.values()} - {""} == set(PROGRAMS)
    assert set(SERVERS) <= set(SYSTEMS)
    for lock in LOCKS.glob("*.txt"):
        lines = [line for line in lock.read_text().splitlines() if not line.startswith(("#", "--editable .["))]
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == [], lock.name


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_on_a_gpu_onnx_runtime_s_systems_have_its_build_for_one(device: str):
    for name in ("rankrt-fp16", "optimum-exported"):
        entry = entry_of(name, device)
        if device.partition(":")[0] in entry.devices:
            lock = (LOCKS / f"{entry.environment}.txt").read_text()
            assert "onnxruntime-gpu==" in lock
            assert "onnxruntime==" not in lock
    assert entry_of("torch-sdpa", device) == entry_of("torch-sdpa")


def test_a_name_stands_for_all_that_begin_with_it():
    assert members("rankrt") == ["rankrt-fp32", "rankrt-int8", "rankrt-avx2-int8", "rankrt-bf16", "rankrt-fp16"]
    assert members("sentence-transformers-onnx") == ["sentence-transformers-onnx"]
    assert members("my.module:System") == ["my.module:System"]
    with pytest.raises(ValueError, match="'tensorflow' is not a system; choose from rankrt-fp32"):
        members("tensorflow")


def test_what_servers_are_made_of_is_in_their_locks():
    for name, server in SERVERS.items():
        assert server.parts, name
        assert pinned(server.environment, server.parts).keys() == set(server.parts)


def test_every_system_can_be_asked_for_alone():
    assert [members(system) for system in SYSTEMS] == [[system] for system in SYSTEMS]


def test_a_worker_answers_with_scores_and_the_seconds_of_the_call(tmp_path: Path):
    with worker("Steady", tmp_path) as steady:
        answer = steady.call("one", ["two", "three"], max_length=64)
        assert answer.scores == [3.0, 5.0]
        assert steady.versions == {"fake": "1"}
        assert steady.call("one", ["three", "two"], max_length=64, batch_size=1).scores == [5.0, 3.0]


def test_a_worker_is_pinned_to_its_cpus(tmp_path: Path):
    with worker("Cpus", tmp_path) as pinned:
        assert pinned.call("one", ["two"], max_length=64).scores == [1.0]


def test_a_device_reaches_the_system_and_the_cpu_is_no_option(tmp_path: Path):
    for device, number in (("cpu", -1.0), ("cuda:1", 1.0)):
        with worker("OnDevice", tmp_path, replace(BUDGET, device=device)) as placed:
            assert placed.call("one", ["two"], max_length=64).scores == [number]


def test_a_system_that_cannot_compute_on_a_device_says_so():
    with pytest.raises(ValueError, match="it does not compute on cuda:1, only on cpu"):
        open_system("openvino-fp32", "", 1, "cuda:1")
    with pytest.raises(ValueError, match="it does not compute on cpu, only on cuda"):
        open_system("torch-fp16", "", 1)


def test_a_call_that_hangs_ends_at_its_limit_and_takes_its_process_with_it(tmp_path: Path):
    with worker("Hangs", tmp_path) as hanging:
        started = time.perf_counter()
        with pytest.raises(SystemFailed, match=r"a call took longer than 0.5 s"):
            hanging.call("one", ["two"], max_length=64)
        assert time.perf_counter() - started < 3
        assert not Path(f"/proc/{hanging.pid}").exists()


def test_a_system_that_crashes_says_why(tmp_path: Path):
    with worker("Crashes", tmp_path) as crashing, pytest.raises(SystemFailed, match="MemoryError: no room"):
        crashing.call("one", ["two"], max_length=64)
    with pytest.raises(SystemFailed, match="ValueError: this model has no head"):
        worker("NeverLoads", tmp_path)


def test_loading_has_a_limit_of_its_own(tmp_path: Path):
    with pytest.raises(SystemFailed, match=r"loading took longer than 0.001 s"):
        worker("Steady", tmp_path, replace(BUDGET, load_s=0.001))


def test_an_environment_that_cannot_be_installed_gives_pip_s_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.harness.environments.LOCKS", tmp_path)
    monkeypatch.setattr("benchmarks.harness.environments.ROOT", tmp_path)
    (tmp_path / "broken.txt").write_text("./nowhere\n")
    with pytest.raises(SystemFailed, match="it cannot be installed: ERROR"):
        python_of("broken")
    with pytest.raises(SystemFailed, match=r"there is no other\.txt; the environments are broken"):
        python_of("other")
