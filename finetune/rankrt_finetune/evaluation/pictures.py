"""The pictures of an evaluation: quality beside speed, differences with their intervals, and wins and losses."""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator

from rankrt_finetune.evaluation.evaluation import Evaluation
from rankrt_finetune.reports.pictures import HEIGHT, INK, mark, picture


def quality_beside_speed(found: Evaluation) -> str | None:
    """Draw the first measure of each system over its speed. The first stage is a line."""
    systems = [(i, row, row.pairs_per_s) for i, row in enumerate(found.rows) if row.pairs_per_s is not None]

    def draw(axes: Axes) -> None:
        for i, row, speed in systems:
            style, ends = mark(i), row.intervals[0]
            if ends is not None:
                axes.plot([speed, speed], ends, c=style["c"], lw=1, zorder=1)
            axes.plot(speed, row.means[0], ls="", label=row.name, **style, zorder=2)
        first = found.rows[-1]
        axes.axhline(first.means[0], c=INK, lw=1, ls=":", label=first.name)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(EngFormatter(sep=""))
        axes.set_xlabel("pairs a second, here")
        axes.set_ylabel(found.measures.names[0])

    return picture(draw, height=HEIGHT + 0.14 * len(systems)) if systems else None


def differences(found: Evaluation) -> str | None:
    """Draw how far each row's first measure is from the first row's, with its interval."""
    rows = [(i, row) for i, row in enumerate(found.rows) if row.differences is not None]

    def draw(axes: Axes) -> None:
        for place, (i, row) in enumerate(rows):
            assert row.differences is not None
            of_first, style = row.differences[0], mark(i)
            if of_first.low is not None and of_first.high is not None:
                axes.plot([of_first.low, of_first.high], [place, place], c=style["c"], lw=2)
            axes.plot(of_first.mean, place, **style)
        axes.axvline(0, c=INK, lw=1)
        axes.set_yticks(range(len(rows)), [row.name for _, row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{found.measures.names[0]} less that of {found.baseline.name}")

    return picture(draw, height=1.2 + 0.4 * len(rows)) if rows else None


def wins_and_losses(found: Evaluation) -> str | None:
    """Draw how far each query is from the first row, the greatest gain first."""
    rows = [(i, row) for i, row in enumerate(found.rows) if row.differences is not None and not row.is_first_stage]

    def draw(axes: Axes) -> None:
        for i, row in rows:
            deltas = np.sort(row.values[:, 0] - found.baseline.values[:, 0])[::-1]
            axes.step(np.arange(1, len(deltas) + 1), deltas, where="mid", label=row.name, c=mark(i)["c"])
        axes.axhline(0, c=INK, lw=1)
        axes.set_xlabel("queries, from the greatest gain to the greatest loss")
        axes.set_ylabel(f"{found.measures.names[0]} less that of {found.baseline.name}")

    return picture(draw, height=HEIGHT + 0.14 * len(rows)) if rows and found.can_be_tested else None


PICTURES: Mapping[str, Callable[[Evaluation], str | None]] = {
    "Quality beside speed": quality_beside_speed,
    "Differences": differences,
    "Wins and losses": wins_and_losses,
}
