"""The playground in a real browser: keyboard, hostile text, files, a key, a server that goes away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")

from tests.server.playground.support import give_key, program, rank, said, side, texts
from tests.server.support import serving

OpenPage = Callable[..., Any]


def test_ranking_by_keyboard_alone(page: Any):
    page.fill("#documents", "two\nfour\nthree")
    page.press("#documents", "Control+Enter")
    page.wait_for_selector(".hits li")
    assert texts(page) == ["four", "three", "two"]
    assert page.locator(".score").all_inner_texts()[0] == "0.9933"
    assert "6 tokens" in page.locator(".hits li").first.inner_text()
    assert said(page, "count") == "3 documents"
    assert said(page) == "3 documents ranked."
    assert "tiny (fp32)" in side(page, "A").inner_text()


def test_text_stays_text(page: Any):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script><b>one</b>"
    rank(page, hostile)
    assert texts(page) == [hostile]
    assert page.locator(".hits img, .hits script, .hits b").count() == 0


def test_the_browser_runs_no_script_but_the_server_s(page: Any, console: list[str]):
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name } }"
    )
    assert refused == "TypeError"
    assert [said for said in console if "TrustedHTML" in said] == console
    console.clear()
    assert page.locator("script:not([src]), style").count() == 0


@pytest.mark.parametrize(
    ("kind", "score", "words"),
    [
        ("logit", "5.0000", "logits: numbers of any size"),
        ("sigmoid", "0.9933", "sigmoids of logits: from 0 to 1, but not probabilities"),
        ("probability", "0.9820", "probabilities, by the calibration of the artifact"),
    ],
)
def test_the_kind_of_the_scores_is_said(open_page: OpenPage, two_models: str, kind: str, score: str, words: str):
    page = open_page(two_models)
    page.fill("#query", "one")
    page.wait_for_selector("#go:enabled")
    page.select_option("#kind", kind)
    rank(page, "four")
    assert page.locator(".score").inner_text() == score
    assert kind in page.locator(".facts").inner_text()
    assert words in side(page, "A").inner_text()


def test_probabilities_are_not_offered_where_no_model_is_calibrated(page: Any):
    assert page.locator("#kind option[value=probability]").is_disabled()


def test_files_of_lines_of_json_and_only_the_best(page: Any, written: Callable[[str, str], Path]):
    page.set_input_files("#file", written("documents.jsonl", '"two"\n{"text": "four"}\n'))
    page.wait_for_selector("#count:has-text('2 documents from column `text` of documents.jsonl')")
    page.fill("#top", "1")
    rank(page)
    assert texts(page) == ["four"]


def read(page: Any, path: Path, content: bytes) -> str:
    """Choose a file and return what the page says of it."""
    path.write_bytes(content)
    page.evaluate("document.getElementById('count').textContent = ''")
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#count:not(:empty)")
    return said(page, "count")


@pytest.mark.parametrize(
    ("name", "content", "told"),
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
    page: Any, tmp_path: Path, name: str, content: bytes, told: str
):
    assert read(page, tmp_path / name, content) == told
    rank(page)
    assert texts(page)[0] == "four"


@pytest.mark.parametrize(
    ("name", "content", "told"),
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
    page: Any, tmp_path: Path, name: str, content: bytes, told: str
):
    page.fill("#documents", "two")
    assert told in read(page, tmp_path / name, content)
    assert page.input_value("#documents") == "two"


def test_another_column_may_be_chosen(page: Any, tmp_path: Path):
    told = read(page, tmp_path / "a.csv", b"title,text\none,two\nfour,zero\n")
    assert told == "2 documents from column `text` of a.csv"
    page.select_option("#column", "title")
    page.wait_for_selector("#count:has-text('`title`')")
    rank(page)
    assert texts(page) == ["four", "one"]


def test_a_line_s_number_counts_the_empty_ones(page: Any):
    rank(page, "two", "", "", "four")
    assert "line 4" in page.locator(".hits li").first.inner_text()


def test_pasted_json_that_is_none_is_an_error_and_not_ranked(page: Any):
    page.fill("#documents", '{"text": "two"}\n{"text": "four"')
    assert said(page, "count") == "line 2 is not JSON"
    rank(page)
    assert said(page) == "line 2 is not JSON"
    assert page.locator(".hits li").count() == 0


@pytest.mark.parametrize(
    ("query", "documents", "told"),
    [
        (" ", "two", "the query is empty: there is nothing to rank by"),
        ("one", "[]", "There are no documents to rank. Type one a line, or choose a file."),
        ("one", "two\nnan", "answered nan for"),
    ],
)
def test_an_error_is_read_out(page: Any, query: str, documents: str, told: str):
    page.fill("#query", query)
    rank(page, documents)
    assert told in said(page)
    assert page.locator("#status").evaluate("e => [e.role ?? e.getAttribute('role'), e.className]") == [
        "status",
        "error",
    ]


def test_a_busy_server_says_when_to_ask_again(page: Any):
    refusal = {
        "status": 429,
        "headers": {"retry-after": "7"},
        "json": {"kind": "overloaded", "message": "too much waits"},
    }
    page.route("**/rankrt/rerank", lambda route: route.fulfill(**refusal), times=1)
    rank(page, "two")
    assert said(page) == "too much waits. Try again in 7 s."
    rank(page)
    assert texts(page) == ["two"]


def test_a_server_that_is_gone_is_said_and_nothing_that_was_typed_is_lost(open_page: OpenPage, tiny_folder: Path):
    with serving(tiny_folder) as address:
        page = open_page(address)
        rank(page, "two")
    rank(page)
    assert said(page) == "The server does not answer. See whether it still runs, then try again."
    assert page.input_value("#documents") == "two"


def test_an_answer_of_a_proxy_that_is_not_json_is_said_by_its_status(page: Any):
    page.route("**/rankrt/rerank", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    rank(page)
    assert said(page) == "The server answered with status 502."


def test_a_key_is_asked_for_where_it_is_needed(open_page: OpenPage, keyed: str):
    page = open_page(keyed)
    page.wait_for_selector("#key", state="visible")
    assert said(page, "model") == "This server needs a key. Give it below."
    page.fill("#key", "another")
    page.press("#key", "Tab")
    page.wait_for_selector("#model.error")
    give_key(page, "our-key")
    rank(page)
    assert len(texts(page)) == 4


def test_a_program_reads_the_key_from_the_environment_and_never_has_it(open_page: OpenPage, keyed: str):
    page = open_page(keyed)
    give_key(page, "our-key")
    for language in ("curl", "python", "typescript"):
        assert "RANKRT_API_KEY" in program(page, language)
        assert "our-key" not in program(page, language)
