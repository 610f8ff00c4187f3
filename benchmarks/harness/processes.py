"""What the kernel says of a process: its children, its processor time and its memory. Linux only."""

import os
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started. Raises OSError if it ends meanwhile."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def cpu_s(pid: int) -> float:
    """Return the processor time of a process until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> dict[str, float]:
    """Return a process's resident, proportional, private and shared memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    shared = kilobytes["Shared_Clean"] + kilobytes["Shared_Dirty"]
    values = {"rss": kilobytes["Rss"], "pss": kilobytes["Pss"], "private": private, "shared": shared}
    return {name: value * 1024 / 1e6 for name, value in values.items()}
