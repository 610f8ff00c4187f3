"""Ranking that stops early: all rows run to the first exit, and on go only those that can still be among the best.

Knows scores, exits and margins; how a row gets from one exit to the next is the walk's business. The bar of an exit is
the n-th best score there. Whoever is among the n best at the end has, of the n that reach the bar, at least one that it
overtakes, so it cannot be further below the bar than the largest gap that is ever overtaken. Such gaps are measured on
text at export (`overtaken_gaps`), and a margin is the gap that a share of them does not exceed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Exit, Margins, Variant
from rankrt.errors import InputError

Progressive: TypeAlias = bool | float | Literal["exact"]

# What True stands for: margins that this share of the overtaken gaps does not exceed.
DEFAULT_SHARE = 0.99
# Takes rows, by their numbers, through the segment to an exit; returns the scores there. `goes_on`: further on later.
Step: TypeAlias = Callable[[Int64Array, int, bool], Float32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """By which margins rows stop, at each exit but the last, and whether those that stopped are checked at the end.

    layers   of each exit
    margins  (n_exits - 1,) how far below the bar a row may be and go on
    rises    (n_exits - 1,) how much higher a score may be at the end; None where nothing is checked
    """

    layers: tuple[int, ...]
    margins: tuple[float, ...]
    rises: tuple[float, ...] | None

    @classmethod
    def of(cls, variant: Variant, deepest: int, progressive: Progressive) -> "Policy":
        """Return the policy for a variant that is run to an exit. Raises InputError if it cannot be."""
        is_exact = isinstance(progressive, str) and progressive == "exact"
        share = 1.0 if is_exact else DEFAULT_SHARE if progressive is True else progressive
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"progressive={progressive!r:.80}, expected True, 'exact', or a share between 0 and 1")
        exits = [end for end in variant.exits if end.layer <= deepest]
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

    scores     (n_rows,) at the last exit that a row came to
    exits      (n_rows,) which that was
    n_rows     how many rows ran to each exit
    n_checked  how many of those that had stopped were run to the end after all
    layers     of each exit
    """

    scores: Float32Array
    exits: Int64Array
    n_rows: tuple[int, ...]
    n_checked: int
    layers: tuple[int, ...]

    def share_saved(self, lengths: Int64Array) -> float:
        """Return the share of the layers' work that was saved, rows weighted by their tokens, (n_rows,)."""
        layers = np.diff([0, *self.layers])
        done = sum(int(n) * int(lengths[self.exits >= i].sum()) for i, n in enumerate(layers))
        return 1 - done / float(self.layers[-1] * lengths.sum())


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


def run(blocks: Sequence[Int64Array], n_rows: int, top_n: int, policy: Policy, step: Step) -> Progress:
    """Run blocks of rows, one after the other, as far as each has to go for the first `top_n` to be known."""
    scores, exits = np.full(n_rows, -np.inf, np.float32), np.zeros(n_rows, np.int64)
    bars, last = _Bars(top_n), len(policy.layers) - 1
    for block in blocks:
        rows = block
        for i in range(len(policy.layers)):
            if not len(rows):
                break
            scores[rows], exits[rows] = step(rows, i, i < last), i
            bar = bars.bar(i, scores[rows])
            if i < last:
                rows = rows[scores[rows] >= bar - policy.margins[i]]
    checked = _check(scores, exits, bars.bar(last, np.zeros(0, np.float32)), policy, step)
    ran = [int((exits >= i).sum()) for i in range(last + 1)]
    return Progress(scores=scores, exits=exits, n_rows=tuple(ran), n_checked=checked, layers=policy.layers)


def _check(scores: Float32Array, exits: Int64Array, bar: float, policy: Policy, step: Step) -> int:
    """Run to the end those that stopped and may be above the bar there; the bar can only rise by it."""
    last = len(policy.layers) - 1
    if policy.rises is None:
        return 0
    rises = np.array([*policy.rises, 0.0], np.float32)
    doubtful = np.flatnonzero((exits < last) & (scores + rises[exits] >= bar))
    for i in range(last + 1):
        if len(doubtful):
            scores[doubtful], exits[doubtful] = step(doubtful, i, i < last), i
    return len(doubtful)


def overtaken_gaps(here: Float32Array, at_end: Float32Array) -> Float32Array:
    """Return for each pair of passages of one query by how much the one that ends above is below here; 0 if it is not.

    here, at_end (n_passages,) the scores at an exit and at the last one
    """
    above, below = np.nonzero(at_end[:, None] > at_end[None, :])
    gaps: Float32Array = np.maximum(here[below] - here[above], 0)
    return gaps


def _margins(end: Exit, variant: Variant) -> Margins:
    if end.margins is None:
        raise InputError(f"{variant.name} was not verified, so nobody knows its margins; progressive needs them")
    return end.margins
