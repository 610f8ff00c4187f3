"""Pictures for a page: drawn by matplotlib as SVG, with their text as text, to fit a phone's width.

The page gives the colours: text and axes have the colour of its text, and colour i is var(--ci). So a dark page has its
own.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Inches: on a phone of 360 CSS pixels a point of type is about a pixel.
WIDTH, HEIGHT = 5.0, 3.9
COLORS = ("#0b6e4f", "#c1440e", "#2b59c3", "#8f2d91", "#b8860b", "#00838f", "#5d4037", "#d81b60", "#607d8b", "#7cb342")
INK = "#1b1f23"
_MARKERS = "os^Dv<>PX*"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "rankrt",
}


def picture(draw: Callable[[Axes], None], height: float = HEIGHT) -> str:
    """Return what a function draws on axes as an SVG element, with a legend below if anything has a label."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=2)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    svg = output.getvalue()
    # The page sets the width; the picture keeps its proportions.
    fitting = re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|height="[^"]*" width="[^"]*"',
        r"\1",
        svg[svg.index("<svg") :],
        count=1,
    )
    return _in_colors_of_the_page(fitting)


def mark(i: int) -> dict[str, Any]:
    """Return the colour and the marker of the i-th thing that is drawn. The first 100 differ in one of them."""
    return {"c": COLORS[i % len(COLORS)], "marker": _MARKERS[(i + i // len(COLORS)) % len(_MARKERS)]}


def _in_colors_of_the_page(svg: str) -> str:
    for i, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--c{i})")
    return svg.replace(INK, "currentColor")
