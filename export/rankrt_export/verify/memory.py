"""How much memory this host has left, so that an export that cannot fit is refused early."""

from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that the kernel counts as available, or a cgroup's rest. None if unknown."""
    meminfo, of_cgroup = root / "proc/meminfo", _of_cgroup(root / "sys/fs/cgroup")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    of_kernel = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return min(of_kernel if of_cgroup is None else [*of_kernel, of_cgroup], default=None)


def _of_cgroup(folder: Path) -> int | None:
    """Return the limit of cgroup v2 less what is in use. The page cache counts as free."""
    limit, used, stat = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.exists() and used.exists() and stat.exists()) or limit.read_text().strip() == "max":
        return None
    cached = next(int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith("file "))
    return int(limit.read_text()) - int(used.read_text()) + cached
