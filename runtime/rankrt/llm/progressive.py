"""Ranking that stops early: all rows run to the first exit, and on go only those that can still be among the best.

Knows scores, exits and margins; how a row gets from one exit to the next is the backend's business. The bar of an exit
is the n-th best score there. A row that is among the n best at the end overtakes at least one of the n that reach the
bar. So its gap to the bar is at most the largest gap that is ever overtaken. Such gaps are measured on text at export
(`overtaken_gaps`), and a margin is the gap that a share of them does not exceed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Exit, Margins, Variant
from rankrt.errors import InputError
from rankrt.llm.exits import Keep

Progressive: TypeAlias = bool | float | Literal["exact"]

# What True stands for: margins that this share of the overtaken gaps does not exceed.
DEFAULT_SHARE = 0.99
# Scores rows, by their numbers, at the exits after these layers. `Keep` says how far each runs; without it all rows run
# to the last exit. Returns the scores there.
Score: TypeAlias = Callable[[Int64Array, Sequence[int], Keep | None], Float32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """By which margins rows stop, at each exit but the last, and whether those that stopped are checked at the end.

    layers   of each exit
    margins  (n_exits - 1,) how far below the bar a row may be without stopping
    rises    (n_exits - 1,) how much higher a score may be at the end; None where nothing is checked
    """

    layers: tuple[int, ...]
    margins: tuple[float, ...]
    rises: tuple[float, ...] | None

    @classmethod
    def of(cls, variant: Variant, deepest: int | None, progressive: Progressive) -> "Policy":
        """Return the policy for a variant that is run to the exit `deepest`, or to the last.

        Raises InputError if it cannot be.
        """
        is_exact = isinstance(progressive, str) and progressive == "exact"
        share = 1.0 if is_exact else DEFAULT_SHARE if progressive is True else progressive
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"progressive={progressive!r:.80}, expected True, 'exact', or a share between 0 and 1")
        exits = [end for end in variant.exits if deepest is None or end.layer <= deepest]
        if len(exits) < 2:
            raise InputError(
                f"progressive needs a layerwise model with an exit before the last; {variant.name} has none"
            )
        measured = [_margins(end, variant) for end in exits[:-1]]
        return cls(
            layers=tuple(end.layer for end in exits),
            margins=tuple(margins.gap(share) for margins in measured),
            rises=tuple(margins.rise for margins in measured) if is_exact else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far rows went.

    scores       (n_rows,) at the last exit that a row came to
    exits        (n_rows,) which that was
    n_rows       how many rows ran to each exit
    n_checked    how many of those that had stopped were run to the end after all
    share_saved  the share of the layers' work that was saved, rows weighted by their tokens
    """

    scores: Float32Array
    exits: Int64Array
    n_rows: tuple[int, ...]
    n_checked: int
    share_saved: float

    @property
    def finished(self) -> Int64Array:
        """The rows that came to the last exit."""
        return np.flatnonzero(self.exits == len(self.n_rows) - 1)


@dataclass(slots=True)
class _Bars:
    """The best scores at each exit so far, of rows of all blocks."""

    n: int
    best: dict[int, Float32Array] = field(default_factory=dict)

    def bar(self, exit_: int, scores: Float32Array) -> float:
        """Return the n-th best score of an exit, these ones counted; below everything while there are fewer."""
        known = np.concatenate([self.best.get(exit_, np.zeros(0, np.float32)), scores])
        self.best[exit_] = np.sort(known)[::-1][: self.n]
        return float(self.best[exit_][-1]) if len(self.best[exit_]) == self.n else -np.inf


def run(score: Score, n_tokens: Int64Array, top_n: int, policy: Policy) -> Progress:
    """Run rows of so many tokens each, (n_rows,), as far as each has to go for the first `top_n` to be known."""
    n_rows = len(n_tokens)
    scores, exits = np.full(n_rows, -np.inf, np.float32), np.zeros(n_rows, np.int64)
    bars, last = _Bars(top_n), len(policy.layers) - 1

    def keep(exit_: int, rows: Int64Array, found: Float32Array) -> Int64Array:
        scores[rows], exits[rows] = found, exit_
        bar = bars.bar(exit_, found)
        return rows[found >= bar - policy.margins[exit_]] if exit_ < last else rows[:0]

    score(np.arange(n_rows), policy.layers, keep)
    n_checked = 0
    if policy.rises is not None:
        doubtful = _doubtful(scores, exits, bars.bar(last, np.zeros(0, np.float32)), policy.rises)
        n_checked = len(doubtful)
        if n_checked:
            scores[doubtful], exits[doubtful] = score(doubtful, policy.layers[-1:], None), last
    came = [exits >= exit_ for exit_ in range(last + 1)]
    n_layers = np.diff([0, *policy.layers])
    done = sum(int(n) * int(n_tokens[rows].sum()) for n, rows in zip(n_layers, came, strict=True))
    return Progress(
        scores=scores,
        exits=exits,
        n_rows=tuple(int(rows.sum()) for rows in came),
        n_checked=n_checked,
        share_saved=1 - done / float(policy.layers[-1] * n_tokens.sum()),
    )


def _doubtful(scores: Float32Array, exits: Int64Array, bar: float, rises: tuple[float, ...]) -> Int64Array:
    """Return the rows that stopped and may be above the bar at the end. Running them can only raise the bar."""
    most = np.array([*rises, 0.0], np.float32)
    return np.flatnonzero((exits < len(rises)) & (scores + most[exits] >= bar))


def overtaken_gaps(here: Float32Array, at_end: Float32Array) -> Float32Array:
    """Return for each pair of passages of one query by how much the one that ends above is below here; 0 if it is not.

    here, at_end (n_passages,) the scores at an exit and at the last one
    """
    above, below = np.nonzero(at_end[:, None] > at_end[None, :])
    gaps: Float32Array = np.maximum(here[below] - here[above], 0)
    return gaps


def _margins(end: Exit, variant: Variant) -> Margins:
    if end.margins is None:
        raise InputError(f"{variant.name} was not verified, so its margins are not known; progressive needs them")
    return end.margins
