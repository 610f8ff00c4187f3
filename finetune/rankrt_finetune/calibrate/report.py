"""The report of a calibration: lines for a terminal, and a page with the reliability diagram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankrt.artifact.calibration import Calibration
from rankrt.scoring import sigmoid
from rankrt_finetune.calibrate.fit import Fitted, Threshold
from rankrt_finetune.reports.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def text_report(name: str, calibration: Calibration, fitted: Fitted, thresholds: Sequence[Threshold]) -> Iterator[str]:
    """Yield the lines of a report."""
    yield f"{name}: {_summary(calibration)}"
    yield f"expected calibration error {fitted.after.error:.4f} (cross-validated); {_before(fitted)}"
    yield ""
    yield "probability  relevant   pairs"
    for found in fitted.after.bins:
        bar = "#" * round(20 * found.share)
        yield f"{found.probability:>11.3f}  {found.share:>8.3f}  {found.n_pairs:>6}  {bar}"
    yield ""
    yield _table(calibration, thresholds).text().rstrip()


def page(name: str, calibration: Calibration, fitted: Fitted, thresholds: Sequence[Threshold]) -> str:
    """Return the report as one self-contained HTML page."""
    from markupsafe import Markup

    from rankrt_finetune.reports.pages import page as report_page

    return report_page(
        Path(__file__).with_name("report.html.jinja"),
        title=f"Calibration of {name}",
        summary=_summary(calibration),
        error=f"{fitted.after.error:.4f}",
        before=_before(fitted),
        diagram=Markup(_diagram(fitted)),
        thresholds=Markup(_table(calibration, thresholds).html()),
    )


def _summary(calibration: Calibration) -> str:
    data = calibration.data
    return (
        f"{calibration.method}, fitted to {data.n_pairs} pairs of {data.n_queries} queries, {data.n_relevant} of them"
        f" relevant, scored by {calibration.variant}"
    )


def _before(fitted: Fitted) -> str:
    return f"{fitted.before.error:.4f} of the sigmoid"


def _table(calibration: Calibration, thresholds: Sequence[Threshold]) -> Table:
    rows = []
    for found in thresholds:
        logit = np.array([found.logit], np.float32)
        (squeezed,), (probability,) = sigmoid(logit), calibration.map.probabilities(logit)
        scores = [f"{score:.4f}" for score in (found.logit, squeezed, probability)]
        rows.append([f"{found.goal} {found.wanted:g}", *scores, f"{found.precision:.3f}", f"{found.recall:.3f}"])
    return Table(heading=["for", "logit", "sigmoid", "probability", "precision", "recall"], rows=rows)


def _diagram(fitted: Fitted) -> str:
    from rankrt_finetune.reports.pictures import INK, mark, picture

    def draw(axes: Axes) -> None:
        axes.axline((0, 0), slope=1, c=INK, lw=1, ls=":")
        for i, (name, found) in enumerate((("probability", fitted.after), ("sigmoid of the logit", fitted.before))):
            color, most = mark(i)["c"], max(one.n_pairs for one in found.bins)
            x, y = [one.probability for one in found.bins], [one.share for one in found.bins]
            axes.plot(x, y, c=color, label=name)
            axes.scatter(x, y, s=[10 + 90 * one.n_pairs / most for one in found.bins], c=color, gid=f"bins-{i}")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="score", ylabel="share of relevant pairs")

    return picture(draw)
