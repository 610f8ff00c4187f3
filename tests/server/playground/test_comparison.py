"""Two models or settings beside each other, what was read, the request as a program, and the state as a link."""

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")

from tests.server.playground.support import call, give_key, program, rank, said, side, texts

OpenPage = Callable[..., Any]


def test_two_models_rank_the_same_documents_beside_each_other(compared: Any):
    rank(compared, "two", "three", "four")
    assert texts(side(compared, "A")) == ["four", "three", "two"]
    assert texts(side(compared, "B")) == ["two", "three", "four"]
    assert "exact (fp32)" in side(compared, "A").inner_text()
    assert "quick (fp32)" in side(compared, "B").inner_text()
    for name in "AB":
        assert re.search(r"server\n[\d.]+ ms", side(compared, name).inner_text())


def test_each_document_says_how_its_rank_differs_and_the_status_how_the_orders_do(compared: Any):
    rank(compared, "two", "three", "four")
    moves = side(compared, "B").locator(".move").all_text_contents()
    assert moves == ["▲higher by 2 (A: 3)", "= as in A", "▼lower by 2 (A: 1)"]
    assert said(compared).startswith("The first documents differ. Kendall's tau is -1.00; 1 is the same order.")
    compared.fill("#top", "1")
    rank(compared)
    assert side(compared, "B").locator(".move").all_text_contents() == ["not in A"]
    assert "Of the first" not in said(compared)


def test_the_same_document_is_marked_on_the_other_side(compared: Any):
    rank(compared, "two", "three", "four")
    side(compared, "A").locator("li").first.hover()
    assert compared.locator("li.same .text").all_inner_texts() == ["four", "four"]


def test_a_model_that_fails_leaves_the_other_one_to_see(compared: Any):
    rank(compared, "two", "nan")
    assert said(compared).startswith("A failed: ")
    assert "answered nan for" in said(compared)
    assert texts(side(compared, "B")) == ["two", "nan"]
    assert compared.locator("#rankings .error").count() == 1


def test_a_model_without_a_calibration_says_so_and_gives_sigmoids(compared: Any):
    compared.select_option("#kind", "probability")
    rank(compared, "two")
    assert "probabilities, by the calibration" in side(compared, "A").inner_text()
    told = side(compared, "B").inner_text()
    assert "This model has no calibration, so it has no probabilities." in told
    assert "sigmoids of logits" in told


def test_two_settings_of_one_model_are_compared(open_page: OpenPage, address: str):
    page = open_page(address)
    page.fill("#query", "one")
    page.check("#compare")
    page.fill("#max-length-A", "20")
    page.select_option("#long-documents-B", "chunk")
    rank(page, "zero " * 40 + "four", "two")
    assert texts(side(page, "A"))[0] == "two"
    assert side(page, "A").locator(".cut").all_inner_texts() == ["✂ 36 % read"]
    assert "four" in texts(side(page, "B"))[0]
    assert "20 tokens" in side(page, "A").locator("h3").inner_text()
    assert "read in windows" in side(page, "B").locator("h3").inner_text()


def test_what_was_not_read_and_the_best_window_are_marked(open_page: OpenPage, address: str):
    page = open_page(address)
    page.fill("#query", "one")
    page.fill("#max-length-A", "16")
    rank(page, "😀 zero " * 20)
    (unread,) = page.locator(".unread").all_inner_texts()
    assert unread.startswith("not read")
    assert unread.count("zero") == 20 - 11 // 2
    page.select_option("#long-documents-A", "chunk")
    rank(page, "zero " * 30 + "four four " + "zero " * 30)
    assert page.locator(".unread").count() == 0
    (window,) = page.locator("mark").all_inner_texts()
    assert "four four" in window
    assert window.count("zero") == 9


def parts(page: Any, text: str, read: list[int], span: list[int] | None = None) -> list[tuple[str, str]]:
    return [(part["kind"], part["text"]) for part in call(page, "spans.js", "partsOf", text, read, span)]


def test_a_text_is_divided_at_code_points(modules: Any):
    assert parts(modules, "abc", [0, 3]) == [("read", "abc")]
    assert parts(modules, "😀b😀d", [1, 3]) == [("unread", "😀"), ("read", "b😀"), ("unread", "d")]
    assert parts(modules, "a😀cd", [0, 4], [1, 2]) == [("read", "a"), ("window", "😀"), ("read", "cd")]
    assert parts(modules, "ab  ", [0, 2]) == [("read", "ab")]
    assert parts(modules, "", [0, 0]) == []
    assert parts(modules, "😀", [0, 0]) == [("unread", "😀")]


def test_kendall_s_tau_and_what_is_shared_are_scipy_s_and_a_count_s(modules: Any):
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    drawn = random.Random(0)
    for n in (2, 3, 10, 60):
        first, second = ([{"index": i} for i in drawn.sample(range(n), n)] for _ in range(2))
        found = call(modules, "comparison.js", "agreement", first, second)
        ranks = [{hit["index"]: i for i, hit in enumerate(order)} for order in (first, second)]
        expected = stats.kendalltau(*([rank[i] for i in range(n)] for rank in ranks)).statistic
        assert found["tau"] == pytest.approx(expected, abs=1e-12)
        best = [{hit["index"] for hit in order[:10]} for order in (first, second)]
        assert found["nShared"] == len(best[0] & best[1])
    assert call(modules, "comparison.js", "agreement", [{"index": 1}], [{"index": 1}]).get("tau") is None


# What shells, Python and JavaScript might take for something else.
HOSTILE = [
    'it\'s "quoted" $HOME `id` $(id) \\n \\u0041 %s {0} ${x}',
    "JSON",
    "true",
    '"truncate": true',
    "two\u2028four 😀é",
]
PROGRAMS = {
    "curl": ("program.sh", ["bash"]),
    "python": ("program.py", [sys.executable]),
    "typescript": ("program.mjs", ["node"]),
}


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.parametrize("key", [None, "our-key"])
def test_the_request_runs_as_a_program(
    open_page: OpenPage, address: str, keyed: str, tmp_path: Path, language: str, key: str | None
):
    name, command = PROGRAMS[language]
    needed = {"curl": "curl", "typescript": "node"}.get(language, sys.executable)
    if shutil.which(needed) is None:
        pytest.skip(f"needs {needed}")
    page = open_page(keyed if key else address)
    if key:
        give_key(page, key)
    page.fill("#query", "one 'two' \"three\"")
    page.fill("#top", "4")
    rank(page, *map(json.dumps, [*HOSTILE, "three\nfour"]))
    (tmp_path / name).write_text(program(page, language), encoding="utf-8")
    environment = {**os.environ, "RANKRT_API_KEY": key or "", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([*command, tmp_path / name], capture_output=True, env=environment, timeout=60)
    output = done.stdout.decode()
    assert (done.returncode, done.stderr.decode()) == (0, "")
    if language == "curl":
        found = [hit["score"] for hit in json.loads(output)["results"]]
    else:
        found = [float(score) for score in re.findall(r"^(0\.\d+|1(?:\.0)?) ", output, re.MULTILINE)]
        assert "three\nfour" in output
    shown = [float(score) for score in page.locator(".score").all_inner_texts()]
    assert [round(score, 4) for score in found] == shown
    assert len(shown) == 4


def test_a_program_is_of_the_side_that_is_chosen_and_follows_the_page(compared: Any):
    assert '"model": "exact"' in program(compared, "curl")
    compared.select_option("#code-side", "B")
    assert '"model": "quick"' in said(compared, "code")
    compared.fill("#max-length-B", "20")
    assert '"max_length": 20' in said(compared, "code")
    compared.fill("#documents", '["two"')
    assert said(compared, "code") == "this looks like a JSON list, but it is not valid JSON"


def linked(page: Any) -> str:
    """Copy the link of a page, and return it."""
    page.click("#link")
    page.wait_for_selector("#copied:not(:empty)")
    assert said(page, "copied").startswith("The link is copied."), said(page, "copied")
    return str(page.url)


def test_a_link_opens_the_page_as_it_was(compared: Any, open_page: OpenPage):
    compared.fill("#documents", 'it\'s "two" 😀\nfour')
    compared.fill("#max-length-A", "20")
    compared.select_option("#long-documents-B", "chunk")
    compared.select_option("#model-A", "quick")
    compared.select_option("#kind", "logit")
    compared.fill("#top", "1")
    page = open_page(linked(compared))
    page.wait_for_selector("#status:has-text('The page is as in the link.')")
    assert page.input_value("#documents") == 'it\'s "two" 😀\nfour'
    names = ["query", "max-length-A", "long-documents-B", "model-A", "model-B", "kind", "top"]
    assert [page.input_value(f"#{name}") for name in names] == ["one", "20", "chunk", "quick", "quick", "logit", "1"]
    rank(page)
    assert side(page, "B").locator("li").count() == 1


def test_a_link_is_never_sent_to_the_server_and_has_no_key(open_page: OpenPage, keyed: str):
    page = open_page(keyed)
    give_key(page, "our-key")
    link = linked(page)
    assert link.startswith(f"{keyed}/#v1.")
    state = link.partition("#v1.")[2]
    content = zlib.decompress(base64.urlsafe_b64decode(state + "=" * (-len(state) % 4)))
    assert b"our-key" not in content
    assert set(json.loads(content)) == {"query", "documents", "kind", "top", "sides"}


def test_a_link_that_would_be_too_long_says_its_limit(page: Any):
    drawn = random.Random(0)
    page.fill("#documents", "".join(chr(drawn.randrange(0x4E00, 0x9FFF)) for _ in range(4000)))
    page.click("#link")
    page.wait_for_selector("#copied.error")
    assert "8000 is the limit" in said(page, "copied")
    assert "#" not in page.url


def packed(state: Any) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(state).encode())).decode().rstrip("=")


SIDE = {"model": "tiny", "maxLength": "", "longDocuments": ""}
STATE: dict[str, Any] = {"query": "one", "documents": "two", "kind": "logit", "top": "", "sides": [SIDE]}
DAMAGED = "This link is damaged, perhaps cut off. Copy it again, whole."


@pytest.mark.parametrize(
    ("fragment", "told"),
    [
        (f"#v1.{packed(STATE)}", "The page is as in the link."),
        (f"#v1.{packed(STATE)[:-8]}", DAMAGED),
        (f"#v1.{packed(STATE)[:20]}A{packed(STATE)[21:]}", DAMAGED),
        ("#v1.", DAMAGED),
        ("#v1.%%%", DAMAGED),
        (f"#v1.{packed([1])}", DAMAGED),
        (f"#v1.{packed(STATE | {'query': 5})}", DAMAGED),
        (f"#v1.{packed(STATE | {'sides': []})}", DAMAGED),
        (f"#v2.{packed(STATE)}", "This link is of version 2 of the playground, and this server's is 1."),
        (
            f"#v1.{packed(STATE | {'sides': [SIDE | {'model': 'other'}]})}",
            "The link names other, which this server does",
        ),
        (f"#v1.{packed(STATE | {'kind': 'probability'})}", "The link wants scores of the kind probability"),
    ],
)
def test_a_link_that_cannot_be_read_is_said_and_the_page_still_ranks(
    open_page: OpenPage, address: str, fragment: str, told: str
):
    page = open_page(f"{address}/{fragment}")
    page.wait_for_selector("#status:not(:has-text('Nothing ranked yet.'))")
    assert said(page).startswith(told)
    page.fill("#query", "one")
    rank(page, "two", "four")
    assert texts(page) == ["four", "two"]


def test_another_link_in_the_same_page_is_followed_and_other_fragments_are_left_alone(page: Any, address: str):
    page.goto(f"{address}/#heading")
    assert page.input_value("#query") == "one"
    page.goto(f"{address}/#v1.{packed(STATE | {'query': 'three'})}")
    page.wait_for_selector("#status:has-text('The page is as in the link.')")
    assert page.input_value("#query") == "three"
