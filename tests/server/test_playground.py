"""The playground in a real browser: keyboard, hostile text, a key, a phone, the dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from rankrt.server.keys import ApiKeys  # noqa: E402
from tests.server.support import serving  # noqa: E402

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    opened = browser.new_page()
    said: list[str] = []
    # Chromium itself notes every status of an error there.
    opened.on("console", lambda message: said.extend([message.text] * ("status of 422" not in message.text)))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(address)
    opened.fill("#query", "one")
    yield opened
    assert said == [], "the console stays empty, the policy is kept"
    opened.close()


def texts(page: Any) -> list[str]:
    page.wait_for_selector("#hits li")
    return list(page.locator("#hits .text").all_inner_texts())


def test_ranking_by_keyboard_alone(page: Any):
    page.fill("#documents", "two\nfour\nthree")
    page.press("#documents", "Control+Enter")
    assert texts(page) == ["four", "three", "two"]
    assert page.locator("#hits .score").all_inner_texts()[0] == "0.9933"
    assert "6 tokens" in page.locator("#hits li").first.inner_text()
    assert page.locator("#count").inner_text() == "3 documents"
    assert "tiny (cpu-fp32)" in page.locator("#status").inner_text()


def test_text_stays_text(page: Any):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script><b>one</b>"
    page.fill("#documents", hostile)
    page.press("#query", "Enter")
    assert texts(page) == [hostile]
    assert page.locator("#hits img, #hits script, #hits b").count() == 0


def test_files_of_lines_of_json_and_what_is_cut(page: Any, tmp_path: Path):
    file = tmp_path / "documents.jsonl"
    file.write_text('"two"\n{"text": "' + "four " * 100 + '"}\n')
    page.set_input_files("#file", str(file))
    page.wait_for_function("document.getElementById('count').textContent === '2 documents'")
    page.fill("#top", "1")
    page.click("#go")
    assert "truncated" in page.locator("#hits li").first.inner_text()
    assert page.locator("#hits li").count() == 1


def test_an_error_is_read_out(page: Any):
    page.fill("#query", " ")
    page.fill("#documents", "two")
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert page.locator("[role=status]").inner_text() == "the query is empty: there is nothing to rank by"


def test_every_field_has_a_name(page: Any):
    fields = page.locator("input, textarea, select, button")
    for i in range(fields.count()):
        field = fields.nth(i)
        label = field.evaluate("e => e.labels?.length ? e.labels[0].textContent : e.textContent")
        assert label.strip(), field.evaluate("e => e.outerHTML")


def test_a_key_is_asked_for_where_it_is_needed(browser: Any, tiny_folder: Path):
    with serving(tiny_folder, keys=ApiKeys(["our-key"])) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", "our-key")
        page.fill("#query", "one")
        page.click("#go")
        assert len(texts(page)) == 4
        page.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, address: str, width: int):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
    page.goto(address)
    page.fill("#documents", "x" * 500 + "\n" + "two " * 300)
    page.click("#go")
    texts(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(22, 24, 28)", "dark where dark is wanted"
    page.close()
