"""Which rows run together, and on how many threads. Knows lengths only: no text, no model, no clock.

Two ways to use n cores. A *narrow* run has one thread, and n of them run side by side: no barriers, so nothing is lost
between the threads of a matrix product. A *wide* run has all n threads: the only way to use them for the last few rows.
A GPU has narrow runs only, large ones, of which one computes while the next is prepared. No plan pads a row, but for
TensorRT engines, which know no other way (the layout "padded"); what they fill up is bounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

import numpy as np

from rankrt.arrays import Int64Array
from rankrt.artifact.manifest import Layout

# A run streams all weights through the caches once, so short rows share one. Tokens against share of the matrix rate,
# XLM-R-large, 1 thread of a Zen 4: 16 74 %, 32 88 %, 64 95 %, 128 98 %, 256 100 %. From 1,024 tokens on, activations
# leave the last-level cache, and it falls to 91 %.
RUN_TOKENS = 256
# What streaming the weights costs, in tokens of one thread's time; it fits the shares above to 2 %.
_RUN_OVERHEAD_TOKENS = 5
# The share of n threads' speed that a wide run reaches; 0.94 to 0.98 was measured with 2 threads.
_WIDE_EFFICIENCY = 0.95
# Longer rows only run wide: one row's activations at a time, however many threads there are. (An 8,192-token row of
# XLM-R-large takes 0.6 GB.)
LONGEST_NARROW_ROW = 2048


# A run on a GPU has so many tokens at most. On an H100 XLM-R-large in fp16 was 2 to 3 % slower with half of them, and 3
# to 7 % faster with twice as many. These take twice the memory and let others wait twice as long. Two runs in flight
# hold 1.4 GB.
GPU_RUN_TOKENS = 16_384
# A flat run's rows are also described as a matrix (n_rows, longest) of 4-byte places, most of them empty when one row
# is long and the others are short. It has no more than so many places for each token of the budget: 256 KB.
_PLACES_PER_TOKEN = 4
# What a padded run may fill up: an eighth of itself, or as much as a run of its own would cost (a few milliseconds).
_PADDING_SHARE = 8
_PADDING_TOKENS = 512
# Padded runs go to one of a few engines, by their longest row: each holds all weights, and is tuned for its length.
# Provisional as well: TensorRT has not run yet.
PADDED_LENGTHS = (128, 512, 2048, 8192)

# Rows that attend in one matrix have like lengths: equal if rounded up to a multiple of so many tokens. Steps of 32, of
# 64 and none at all took the same time within 3 % (6 layers of XLM-R-large in bf16, 16 rows of 20 to 200 tokens).
_SPREAD_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a backend offers the planner.

    layout       which rows a run takes: of any lengths, of one length if stacked, of like lengths if padded or spread
    n_threads    the threads of a wide run; 1 on a GPU, which has none
    n_narrow     how many narrow runs may go side by side, on a GPU be in flight; 0 where there are only wide ones
    longest_row  the most tokens that a row may have; None is whatever the model takes
    """

    layout: Layout
    n_threads: int
    n_narrow: int
    longest_row: int | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether runs go to a GPU, one after the other, however many are in flight."""
        return self.layout in ("varlen", "padded")

    @property
    def run_tokens(self) -> int:
        """The most tokens that pay in one run."""
        if self.is_gpu:
            return GPU_RUN_TOKENS
        return RUN_TOKENS if self.n_narrow else RUN_TOKENS * self.n_threads

    def budget(self, n_tokens: int, n_lanes: int | None = None) -> int:
        """Return how many tokens a run should have when so many wait: no more than pays, and a run for every lane.

        `n_lanes` are those of all workers. A GPU computes one run at a time, so nothing is divided for it.
        """
        if self.is_gpu:
            return self.run_tokens
        n_lanes = (n_lanes or self.n_narrow) if self.n_narrow else 1
        return max(1, min(self.run_tokens, -(-n_tokens // n_lanes)))

    def must_be_wide(self, length: int) -> bool:
        """Tell whether a row of that length only runs on all threads."""
        return self.n_narrow == 0 or (length > LONGEST_NARROW_ROW and not self.is_gpu)


@dataclass(frozen=True, slots=True)
class Plan:
    """Runs of row numbers: the wide ones go first, one after the other; the narrow ones go side by side, in order."""

    wide: tuple[Int64Array, ...] = field(default=())
    narrow: tuple[Int64Array, ...] = field(default=())

    @classmethod
    def of_one_run(cls, n_rows: int, *, is_wide: bool) -> "Plan":
        """Return the plan by which all rows run together: on all threads, or on one."""
        rows = (np.arange(n_rows),)
        return cls(wide=rows) if is_wide else cls(narrow=rows)

    @property
    def runs(self) -> tuple[Int64Array, ...]:
        """All runs."""
        return self.wide + self.narrow


def plan(lengths: Int64Array, capacity: Capacity, groups: Int64Array | None = None) -> Plan:
    """Divide rows into runs that finish as early as possible together, longest first. Every row is in one run.

    With `groups`, (n_rows,), rows of different groups are never in one run.
    """

    def divided(rows: Int64Array, budget: int) -> list[Int64Array]:
        apart = [rows] if groups is None else [rows[groups[rows] == group] for group in np.unique(groups[rows])]
        runs = [group[run] for group in apart for run in divide(lengths[group], budget, capacity.layout)]
        return sorted(runs, key=lambda run: -int(lengths[run[0]]))

    runs = divided(np.arange(len(lengths)), capacity.budget(int(lengths.sum())))
    n_wide = n_wide_runs([int(lengths[run].sum()) for run in runs], capacity)
    n_wide = max(n_wide, sum(capacity.must_be_wide(int(lengths[run[0]])) for run in runs))
    # The budget leaves a run for every lane. Wide runs go one after the other, so fewer are better. One of 60 and 30
    # tokens took 0.87 of the time of two (6 x 384, 2 threads of a Zen 4).
    wide = divided(np.sort(np.concatenate(runs[:n_wide])), capacity.run_tokens) if n_wide > 1 else runs[:n_wide]
    return Plan(wide=tuple(wide), narrow=tuple(runs[n_wide:]))


@dataclass(slots=True)
class Filling:
    """A run that is being filled: how many rows and tokens it has, and the length of its first and its longest row."""

    n_rows: int = 0
    n_tokens: int = 0
    first: int = 0
    longest: int = 0

    def add(self, length: int) -> None:
        """Count a row."""
        self.first = self.first or length
        self.n_rows, self.n_tokens = self.n_rows + 1, self.n_tokens + length
        self.longest = max(self.longest, length)

    def takes(self, length: int, budget: int, layout: Layout) -> bool:
        """Tell whether a row of that length may join, so that the run stays within the budget.

        The first row always may. Places are those of a matrix of the run's rows, filled up to the longest.
        """
        if not self.n_rows:
            return True
        n_tokens = self.n_tokens + length
        n_places = (self.n_rows + 1) * max(self.longest, length)
        if layout == "padded":
            # The engine for rows of up to 128 tokens takes as many rows as 128 go into the budget, however short.
            longest = padded_length(max(self.longest, length))
            if (self.n_rows + 1) * longest > budget:
                return False
            return n_places - n_tokens <= max(_PADDING_TOKENS, n_places // _PADDING_SHARE)
        if layout == "varlen":
            return n_tokens <= budget and n_places <= _PLACES_PER_TOKEN * budget
        if layout == "spread":
            return n_tokens <= budget and spread_width(length) == spread_width(self.first)
        return n_tokens <= budget and (layout != "stacked" or length == self.first)


def spread_width(length: int) -> int:
    """Return the width of the matrix in which a row of that length attends."""
    return -(-length // _SPREAD_TOKENS) * _SPREAD_TOKENS


def padded_length(longest: int) -> int:
    """Return the length that the engine for a run with such a longest row is made for."""
    return next((length for length in PADDED_LENGTHS if longest <= length), longest)


def divide(lengths: Int64Array, budget: int, layout: Layout) -> list[Int64Array]:
    """Fill runs with rows of descending length, each as far as the layout and the budget allow.

    A row that is longer than the budget has a run of its own.
    """
    runs: list[list[int]] = []
    filling = Filling()
    for row in by_length(lengths).tolist():
        if not runs or not filling.takes(int(lengths[row]), budget, layout):
            runs.append([])
            filling = Filling()
        runs[-1].append(row)
        filling.add(int(lengths[row]))
    return [np.array(run, np.int64) for run in runs]


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


def by_length(lengths: Int64Array) -> Int64Array:
    """Return the rows in descending order of length, equal ones in their own order."""
    return np.argsort(-lengths, kind="stable")
