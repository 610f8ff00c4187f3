"""The playground for everyone: axe finds nothing, in both schemes, on a desktop and on a phone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")

from tests.server.playground.support import rank, said

OpenPage = Callable[..., Any]
LONG = "zero " * 120 + "four four " + "zero " * 120
LABELLED = '{"query": "one", "pos": ["two"], "neg": ["four"]}\n{"query": "two", "pos": ["three"], "neg": ["zero"]}'
PHONE, DESKTOP = 360, 1280


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_page_that_shows_everything(
    open_page: OpenPage, two_models: str, written: Callable[[str, str], Path], scheme: str, width: int
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(two_models, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_selector("#go:enabled")
    assert findings(axe, page) == []
    page.check("#compare")
    page.select_option("#long-documents-B", "chunk")
    page.select_option("#kind", "probability")
    page.fill("#query", "one " * 60)
    page.evaluate("document.getElementById('program').open = true")
    rank(page, LONG, "two", "four", "x" * 500)
    page.set_input_files("#labelled", written("a.jsonl", LABELLED))
    page.click("#measure")
    page.wait_for_selector("#measured table >> nth=1")
    assert findings(axe, page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(247, 247, 244)", "dark": "rgb(22, 24, 28)"}[scheme]


def test_axe_finds_nothing_where_things_go_wrong(
    open_page: OpenPage, two_models: str, written: Callable[[str, str], Path]
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(two_models, color_scheme="light")
    page.check("#compare")
    rank(page, "two", "nan")
    page.set_input_files("#labelled", written("a.jsonl", "{"))
    page.click("#measure")
    page.wait_for_selector("#errors li")
    assert findings(axe, page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page_about_the_api(open_page: OpenPage, address: str, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(f"{address}/docs", color_scheme=scheme)
    assert findings(axe, page) == []


def findings(axe: Any, page: Any) -> list[str]:
    """Return what axe finds, with the elements."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']]}" for rule in found]


def test_everything_is_reached_and_done_by_keyboard(compared: Any):
    rank(compared, LONG, "two")
    compared.locator("#query").focus()
    reached = []
    for _ in range(30):
        reached.append(compared.evaluate("document.activeElement.id || document.activeElement.className"))
        compared.keyboard.press("Tab")
    wanted = ["query", "documents", "file", "model-A", "compare", "model-B", "kind", "top", "go", "link", "text"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places), "in the order of the page"
    assert reached.count("text") == 2, "a long text is scrolled by keyboard on each side; short ones are not stops"
    assert {"labelled", "measure"} <= set(reached)


def test_what_happens_is_said_to_screen_readers(compared: Any):
    rank(compared, "two", "four")
    assert compared.locator("#status").get_attribute("role") == "status"
    assert said(compared)
    tree = side_tree(compared)
    assert 'article "A exact (fp32)"' in tree
    assert 'list "Documents, the most relevant first"' in tree
    assert "lower by 1" in tree


def side_tree(page: Any) -> str:
    return str(page.locator("#rankings").aria_snapshot())
