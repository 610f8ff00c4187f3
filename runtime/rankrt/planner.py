"""Which rows run together, and on how many threads. Knows lengths only: no text, no model, no clock.

Two ways to use n cores. A *narrow* run has one thread, and n of them run side by side: no barriers, so nothing is lost
between the threads of a matrix product. A *wide* run has all n threads: the only way to use them for the last few rows.
No plan pads a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import groupby

import numpy as np

from rankrt.arrays import Int64Array
from rankrt.artifact import Layout

# A run streams all weights through the caches once, so short rows share one. Tokens against share of the matrix rate,
# XLM-R-large, 1 thread of a Zen 4: 16 74 %, 32 88 %, 64 95 %, 128 98 %, 256 100 %; from 1,024 on activations leave the
# last-level cache and it falls to 91 %.
RUN_TOKENS = 256
# What streaming the weights costs, in tokens of one thread's time; it fits the shares above to 2 %.
_RUN_OVERHEAD_TOKENS = 5
# The share of n threads' speed that a wide run reaches; 0.94 to 0.98 was measured with 2 threads.
_WIDE_EFFICIENCY = 0.95
# Longer rows only run wide: one row's activations at a time, however many threads there are. (An 8,192-token row of
# XLM-R-large takes 0.6 GB.)
LONGEST_NARROW_ROW = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a backend offers the planner.

    layout     packed and causal runs take rows of any lengths, stacked ones rows of one length
    n_threads  the threads of a wide run
    n_narrow   how many narrow runs may go side by side; 0 where there are only wide ones
    """

    layout: Layout
    n_threads: int
    n_narrow: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Runs of row numbers: the wide ones go first, one after the other; the narrow ones go side by side, in order."""

    wide: tuple[Int64Array, ...] = field(default=())
    narrow: tuple[Int64Array, ...] = field(default=())

    @property
    def runs(self) -> tuple[Int64Array, ...]:
        """All runs."""
        return self.wide + self.narrow


def plan(lengths: Int64Array, capacity: Capacity, groups: Int64Array | None = None) -> Plan:
    """Divide rows into runs that finish as early as possible together, longest first. Every row is in one run.

    With `groups`, (n_rows,), rows of different groups are never in one run.
    """
    n_lanes = capacity.n_narrow or 1
    budget = run_budget(lengths, n_lanes, RUN_TOKENS if capacity.n_narrow else RUN_TOKENS * capacity.n_threads)
    divide = stack if capacity.layout == "stacked" else pack
    runs = [rows[run] for rows in by_group(groups, len(lengths)) for run in divide(lengths[rows], budget)]
    runs.sort(key=lambda run: -int(lengths[run[0]]))
    n_wide = n_wide_runs([int(lengths[run].sum()) for run in runs], capacity)
    n_wide = max(n_wide, sum(bool(lengths[run[0]] > LONGEST_NARROW_ROW) for run in runs))
    return Plan(wide=tuple(runs[:n_wide]), narrow=tuple(runs[n_wide:]))


def run_budget(lengths: Int64Array, n_lanes: int, most: int) -> int:
    """Return how many tokens a run should have: no more than pays, and no more than leaves a run for every lane."""
    return max(1, min(most, -(-int(lengths.sum()) // n_lanes)))


def pack(lengths: Int64Array, budget: int) -> list[Int64Array]:
    """Fill runs up to the budget with rows of descending length; a longer row has a run of its own."""
    runs: list[list[int]] = []
    n_tokens = budget
    for row in by_length(lengths):
        if n_tokens + lengths[row] > budget:
            runs.append([])
            n_tokens = 0
        runs[-1].append(int(row))
        n_tokens += int(lengths[row])
    return [np.array(run, np.int64) for run in runs]


def stack(lengths: Int64Array, budget: int) -> list[Int64Array]:
    """Fill runs up to the budget with rows of one length, descending; a longer row has a run of its own."""
    runs: list[Int64Array] = []
    for length, rows in groupby(by_length(lengths), key=lambda row: int(lengths[row])):
        n_together = max(1, budget // length)
        same = np.array(list(rows), np.int64)
        runs += [same[start : start + n_together] for start in range(0, len(same), n_together)]
    return runs


def n_wide_runs(run_tokens: Sequence[int], capacity: Capacity) -> int:
    """Return how many of the first (the longest) runs should be wide for everything to finish soonest."""
    if not capacity.n_narrow:
        return len(run_tokens)
    if capacity.n_threads == 1:
        return 0
    costs = [n + _RUN_OVERHEAD_TOKENS for n in run_tokens]
    speedup = capacity.n_threads * _WIDE_EFFICIENCY
    # Fewer runs than lanes may all go wide; of more, only the remainder of an even share is worth it.
    candidates = range(min(len(costs), capacity.n_narrow) + 1)
    return min(candidates, key=lambda n: sum(costs[:n]) / speedup + makespan(costs[n:], capacity.n_narrow))


def makespan(costs: Sequence[float], n_lanes: int) -> float:
    """Return when the last of the lanes finishes if each takes the next run as soon as it is free."""
    lanes = [0.0] * n_lanes
    heapify(lanes)
    for cost in costs:
        heapreplace(lanes, lanes[0] + cost)
    return max(lanes)


def by_group(groups: Int64Array | None, n_rows: int) -> list[Int64Array]:
    """Return the rows of each group; without groups all rows are one."""
    if groups is None:
        return [np.arange(n_rows)]
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def by_length(lengths: Int64Array) -> Int64Array:
    """Return the rows in descending order of length, equal ones in their own order."""
    return np.argsort(-lengths, kind="stable")
