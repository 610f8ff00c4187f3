"""One self-contained HTML page: the style is here, and a template of its own says what stands on the page."""

from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment

from rankrt_finetune.reports.pictures import COLORS

_PAGE = Path(__file__).with_name("page.html.jinja")


def page(template: Path, **values: Any) -> str:
    """Return the page of a template that extends "page" and fills its blocks `title` and `body`.

    Text is escaped, unless it is `Markup`.
    """
    sources = {"page": _PAGE.read_text(encoding="utf-8"), "own": template.read_text(encoding="utf-8")}
    environment = Environment(loader=DictLoader(sources), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("own").render(colors=COLORS, **values)
