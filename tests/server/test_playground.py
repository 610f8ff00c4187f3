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

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
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
    page.wait_for_selector("#count:has-text('2 documents from column `text` of documents.jsonl')")
    page.fill("#top", "1")
    page.click("#go")
    assert "truncated" in page.locator("#hits li").first.inner_text()
    assert page.locator("#hits li").count() == 1


def read(page: Any, path: Path, content: bytes) -> str:
    """Choose a file and return what the page says of it."""
    path.write_bytes(content)
    page.evaluate("document.getElementById('count').textContent = ''")
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#count:not(:empty)")
    return str(page.locator("#count").inner_text())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"id,text\n1,two\n2,four\n", "2 documents from column `text` of a.csv"),
        ("a.csv", b'id;body\r\n1;"two;\r\nthree"\r\n2;four\r\n', "2 documents from column `body` of a.csv"),
        ("a.tsv", b"name\tpassage\nx\ttwo\ny\tfour\n", "2 documents from column `passage` of a.tsv"),
        ("a.json", b'["two", {"text": "four"}]', "2 documents from column `text` of a.json"),
        ("a.json", b'{"query": "one", "documents": ["two", "four"]}', "2 documents of a.json"),
        ("a.jsonl", b'{"text": "two", "n": 1}\n\n{"text": "four"}\n', "2 documents from column `text` of a.jsonl"),
        ("a.txt", b"\xef\xbb\xbftwo\r\n\r\nfour", "2 documents of a.txt"),
        (
            "a.txt",
            "zero caf\u00e9\nfour".encode("latin-1"),
            "2 documents of a.txt, read as Latin-1, because it is not UTF-8",
        ),
        ("a.txt", "two\nfour".encode("utf-16"), "2 documents of a.txt, read as UTF-16"),
    ],
)
def test_a_file_is_read_by_its_kind_and_the_page_says_what_was_read(
    page: Any, tmp_path: Path, name: str, content: bytes, said: str
):
    assert read(page, tmp_path / name, content) == said
    page.click("#go")
    assert texts(page)[0] == "four"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", b"%PDF-1.7\n...", "it is not text"),
        ("a.txt", b"two\0three", "it is not text"),
        ("a.json", b'["two", 3]', "item 2 is neither a text nor an object with a text"),
        ("a.json", b'["two"', "it is not JSON"),
        (
            "a.jsonl",
            b'{"text": "two"}\n\n{"title": "four"}',
            "line 3 is neither a text nor an object with a text in `text`",
        ),
        ("a.jsonl", b'{"text": "two"}\nfour', "line 2 is not JSON"),
        ("a.csv", b"id,text\n1,two\n2,four,five\n", "line 3 has 3 cells, but the header has 2"),
        ("a.csv", b'text\n"two\n', "the quote that begins in line 2 is not closed"),
        ("a.csv", b"text\n", "this table has only a header"),
        ("a.txt", b" \n", "it has no documents"),
    ],
)
def test_a_file_that_is_not_of_its_kind_is_refused_and_nothing_is_replaced(
    page: Any, tmp_path: Path, name: str, content: bytes, said: str
):
    page.fill("#documents", "two")
    assert said in read(page, tmp_path / name, content)
    assert page.input_value("#documents") == "two"


def test_another_column_may_be_chosen(page: Any, tmp_path: Path):
    said = read(page, tmp_path / "a.csv", b"title,text\none,two\nfour,zero\n")
    assert said == "2 documents from column `text` of a.csv"
    page.select_option("#column", "title")
    page.wait_for_selector("#count:has-text('`title`')")
    page.click("#go")
    assert texts(page) == ["four", "one"]


def test_a_line_s_number_counts_the_empty_ones(page: Any):
    page.fill("#documents", "two\n\n\nfour")
    page.click("#go")
    texts(page)
    assert "line 4" in page.locator("#hits li").first.inner_text()


def test_pasted_json_that_is_none_is_an_error_and_not_ranked(page: Any):
    page.fill("#documents", '{"text": "two"}\n{"text": "four"')
    assert page.locator("#count").inner_text() == "line 2 is not JSON"
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert page.locator("#hits li").count() == 0


def luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(","))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# Of every element with text of its own: how it begins, its ink and the ground below it.
CONTRAST = """() => [...document.querySelectorAll('body *')]
  .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
  .map(e => {
    let under = e;
    while (under && getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
    const ground = getComputedStyle(under ?? document.body).backgroundColor;
    return [e.outerHTML.slice(0, 80), getComputedStyle(e).color, ground];
  })"""


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_asks_for(browser: Any, address: str, path: str, scheme: str):
    page = browser.new_page(color_scheme=scheme)
    page.goto(address + path)
    if path == "/":
        page.click("#go")
        texts(page)
    page.evaluate(
        "document.querySelectorAll('details').forEach(d => { d.open = d.parentElement.tagName !== 'DETAILS' })"
    )
    found = page.evaluate(CONTRAST)
    assert len(found) > 20
    for element, ink, ground in found:
        lighter, darker = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (element, ink, ground)
    page.close()


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
