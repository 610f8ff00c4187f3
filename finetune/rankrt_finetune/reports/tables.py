"""Tables as text, as Markdown and as HTML: a heading and rows of cells."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as text; the first column names the row, the others are figures."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table for a terminal: columns of one width, the first one to the left, with a line end."""
        widths = [max(map(len, column)) for column in zip(self.heading, *self.rows, strict=True)]
        return "".join(f"{_aligned(cells, widths)}\n" for cells in (self.heading, *self.rows))

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, with a line end."""
        return _line(self.heading) + "|---" * len(self.heading) + "|\n" + "".join(map(_line, self.rows))

    def html(self) -> str:
        """Return the table in a box that scrolls sideways on a narrow screen."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.heading)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in self.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *figures]).rstrip()


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a value with so many significant digits, without an exponent if it stays readable; - for None."""
    if value is None:
        return "-"
    if value == 0 or not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
