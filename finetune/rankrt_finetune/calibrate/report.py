"""The report of a calibration: lines for a terminal, and a page with the reliability diagram."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np

from rankrt.artifact.calibration import Calibration
from rankrt.scoring import sigmoid
from rankrt_finetune.calibrate.fit import Fitted, Reliability, Threshold

_HEADERS = ("for", "logit", "sigmoid", "probability", "precision", "recall")
# The diagram in pixels, with a margin for its numbers.
_SIZE, _MARGIN = 320, 36


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
    for cells in (_HEADERS, *_rows(calibration, thresholds)):
        yield "  ".join([f"{cells[0]:<15}", *(f"{cell:>11}" for cell in cells[1:])])


def page(name: str, calibration: Calibration, fitted: Fitted, thresholds: Sequence[Threshold]) -> str:
    """Return the report as an HTML page that needs nothing else."""
    header = "".join(f"<th>{title}</th>" for title in _HEADERS)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in _rows(calibration, thresholds)
    )
    template = Template(files("rankrt_finetune.calibrate").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=escape(name),
        summary=escape(_summary(calibration)),
        error=f"{fitted.after.error:.4f}",
        before=_before(fitted),
        diagram=_diagram(fitted),
        header=header,
        rows=rows,
    )


def _summary(calibration: Calibration) -> str:
    data = calibration.data
    return (
        f"{calibration.method}, fitted to {data.n_pairs} pairs of {data.n_queries} queries, {data.n_relevant} of them"
        f" relevant, scored by {calibration.variant}"
    )


def _before(fitted: Fitted) -> str:
    return f"{fitted.before.error:.4f} of the sigmoid"


def _rows(calibration: Calibration, thresholds: Sequence[Threshold]) -> Iterator[tuple[str, ...]]:
    for found in thresholds:
        logit = np.array([found.logit], np.float32)
        (squeezed,), (probability,) = sigmoid(logit), calibration.map.probabilities(logit)
        yield (
            f"{found.goal} {found.wanted:g}",
            f"{found.logit:.4f}",
            f"{squeezed:.4f}",
            f"{probability:.4f}",
            f"{found.precision:.3f}",
            f"{found.recall:.3f}",
        )


def _diagram(fitted: Fitted) -> str:
    whole = _SIZE + 2 * _MARGIN
    ticks = "".join(
        f'<text x="{_x(tick)}" y="{whole - 14}" text-anchor="middle">{tick:g}</text>'
        f'<text x="{_MARGIN - 6}" y="{_y(tick) + 4}" text-anchor="end">{tick:g}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg width="{whole}" height="{whole}" role="img" aria-label="Reliability diagram">'
        f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#999"/>'
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#999" stroke-dasharray="4"/>'
        f"{ticks}{_curve(fitted.before, 'before')}{_curve(fitted.after, 'after')}</svg>"
    )


def _curve(reliability: Reliability, kind: str) -> str:
    most = max(found.n_pairs for found in reliability.bins)
    points = [(_x(found.probability), _y(found.share)) for found in reliability.bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 5 * (found.n_pairs / most) ** 0.5:.1f}"/>'
        for (x, y), found in zip(points, reliability.bins, strict=True)
    )
    return f'<g class="{kind}"><polyline points="{line}" style="fill:none"/>{dots}</g>'


def _x(value: float) -> float:
    return _MARGIN + _SIZE * value


def _y(value: float) -> float:
    return _MARGIN + _SIZE * (1 - value)
