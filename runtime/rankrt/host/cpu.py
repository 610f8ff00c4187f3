"""What this host offers a computation: the cores it may use and the instructions they speak.

Speaks with the operating system only; knows no model, and nothing that runs one.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankrt.artifact.precisions import InstructionSet

# The flags by which ONNX Runtime's matrix kernels choose their code (mlas/lib/platform.cpp), and OpenVINO its own.
_KERNEL_FLAGS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)
# Each adds four products of bytes in 32 bits at once; the last is Arm's.
_VNNI_FLAGS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"}
# The instructions by which OpenVINO multiplies brain floats on x86, the fastest first.
_BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """How many threads a computation may use, and what set that number."""

    n: int
    limited_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The host as a scheduler of matrix products sees it."""

    processor: str
    architecture: str
    instructions: tuple[str, ...]
    cores: Cores

    @property
    def multiplies_bytes(self) -> bool:
        """Whether products of 8-bit integers are faster than those of floats: with AVX2 or Arm's dot products."""
        return not {"avx2", "asimddp"}.isdisjoint(self.instructions)

    @property
    def multiplies_tiles(self) -> bool:
        """Whether AMX multiplies tiles of bytes, which is far faster than VNNI."""
        return "amx_int8" in self.instructions

    @property
    def multiplies_bf16(self) -> str | None:
        """The instructions that multiply brain floats here, the fastest; None if there are none.

        AMX multiplies tiles. AVX-512 BF16 doubles fp32's rate on AMD's processors; on Intel's it halves it.
        """
        return next((name for flag, name in _BF16_FLAGS.items() if flag in self.instructions), None)

    @property
    def instruction_sets(self) -> tuple[InstructionSet, ...]:
        """The instruction sets whose graphs ONNX Runtime runs at their full speed here, the best first."""
        return ("avx2",) if _VNNI_FLAGS.isdisjoint(self.instructions) else ("vnni", "avx2")


def this_machine(root: Path = Path("/")) -> Machine:
    """Describe the host. `root` is where its /proc and /sys are mounted."""
    lines = (_read(root / "proc/cpuinfo") or "").split("\n\n")[0].splitlines()
    cpuinfo = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    return Machine(
        processor=cpuinfo.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        instructions=tuple(flag for flag in _KERNEL_FLAGS if flag in flags),
        cores=usable_cores(root),
    )


def usable_cores(root: Path = Path("/")) -> Cores:
    """Count the cores this process may really use: physical, inside its affinity mask and its cgroup's CPU quota.

    Two hardware threads of a core share one set of multipliers, so a matrix product gains nothing from the second.
    """
    n_cpus = os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(n_cpus))
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed}
    cores = len(allowed) if None in siblings else len(siblings)
    quota = cpu_quota(root)
    if quota is not None and quota < cores:
        # Rounded down: a thread beyond the quota is stopped for the rest of every 100 ms period.
        return Cores(n=max(1, int(quota)), limited_by=f"a cgroup quota of {quota:g} CPUs")
    if len(allowed) < n_cpus:
        return Cores(n=cores, limited_by=f"an affinity mask of {len(allowed)} of {n_cpus} CPUs")
    return Cores(n=cores, limited_by="the number of physical cores")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of this process's cgroup and its ancestors, in CPUs; None where there is none."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders that may hold a quota: cgroup v2 ("0::/a/b") and v1 ("4:cpu,cpuacct:/a/b"), leaf to root."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        leaf = mount / path.lstrip("/")
        yield leaf
        yield from (parent for parent in leaf.parents if parent.is_relative_to(mount))


def _quota_of(folder: Path) -> float | None:
    if (v2 := _read(folder / "cpu.max")) is not None:
        quota, period = v2.split()
        return None if quota == "max" else int(quota) / int(period)
    if (v1 := _read(folder / "cpu.cfs_quota_us")) is not None:
        return None if int(v1) < 0 else int(v1) / int(_read(folder / "cpu.cfs_period_us") or 100_000)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
