"""Counting cores as a container sees them, on file trees that look like hosts."""

import os
from pathlib import Path

import pytest

from rankrt.host.cpu import cpu_quota, this_machine, usable_cores


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with 8 CPUs on 4 cores, all allowed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for cpu in range(8):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_two_threads_of_a_core_count_once(host: Path):
    assert usable_cores(host).n == 4


def test_an_affinity_mask_counts_its_own_cores(host: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4})
    cores = usable_cores(host)
    assert cores.n == 2
    assert cores.limited_by == "an affinity mask of 3 of 8 CPUs"


@pytest.mark.parametrize(("quota", "n"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("9 1", 4)])
def test_a_cgroup_quota_is_rounded_down_but_not_to_nothing(host: Path, quota: str, n: int):
    write(host / "proc/self/cgroup", "0::/pod/container\n")
    write(host / "sys/fs/cgroup/pod/container/cpu.max", quota)
    assert usable_cores(host).n == n


def test_the_smallest_quota_of_all_ancestors_counts(host: Path):
    write(host / "proc/self/cgroup", "0::/pod/container\n")
    write(host / "sys/fs/cgroup/pod/container/cpu.max", "max 100000")
    write(host / "sys/fs/cgroup/pod/cpu.max", "300000 100000")
    write(host / "sys/fs/cgroup/cpu.max", "700000 100000")
    assert cpu_quota(host) == 3


def test_a_container_with_its_own_cgroup_namespace_reads_the_root(host: Path):
    write(host / "proc/self/cgroup", "0::/\n")
    write(host / "sys/fs/cgroup/cpu.max", "200000 100000")
    assert usable_cores(host).limited_by == "a cgroup quota of 2 CPUs"


@pytest.mark.parametrize(("quota", "expected"), [("150000", 1.5), ("-1", None)])
def test_version_one_cgroups_are_read(host: Path, quota: str, expected: float | None):
    write(host / "proc/self/cgroup", "7:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n")
    write(host / "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us", quota)
    write(host / "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000")
    assert cpu_quota(host) == expected


def test_a_host_without_any_of_these_files_counts_its_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores(tmp_path).n == 3


def test_the_processor_and_its_instructions_are_read(host: Path):
    write(
        host / "proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Test 9000\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor: 1",
    )
    machine = this_machine(host)
    assert machine.processor == "Test 9000"
    assert machine.instructions == ("avx2", "avx512_vnni")


def test_this_host_has_at_least_one_core():
    assert this_machine().cores.n >= 1
