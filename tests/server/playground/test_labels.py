"""A file of queries with labels: how it is read, what is measured, and what is said of bad lines and busy servers."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra server")
pytest.importorskip("uvicorn", reason="needs the extra server")

from tests.server.playground.support import call, said, texts

Write = Callable[[str, str], Path]


def queries(page: Any, name: str, text: str) -> dict[str, dict[str, int]]:
    """Return the labels of the passages of each query of a file without errors."""
    found = call(page, "labelled.js", "queriesOf", name, text)
    assert found["errors"] == []
    return {one["query"]: {p["text"]: p["label"] for p in one["passages"]} for one in found["queries"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"query": "one", "pos": ["two"], "neg": ["four", "zero"], "prompt": "x", "pos_scores": [1]}'),
        (
            "a.jsonl",
            '{"query": "one", "passage": "two", "label": 1}\n\n{"query": "one", "document": "four", "label": 0}\n'
            '{"query": "one", "text": "zero", "label": false}',
        ),
        (
            "a.jsonl",
            '{"query": "one", "positive": "two", "negative": "four"}\n{"anchor": "one", "pos": "two", "neg": "zero"}',
        ),
        ("a.json", '[{"query": "one", "pos": ["two"], "neg": ["four", "zero"]}]'),
        ("a.csv", "query,passage,label\none,two,1\none,four,0\none,zero,0\n"),
        ("a.tsv", "query\tpositive\tnegative\none\ttwo\tfour\none\ttwo\tzero\n"),
    ],
)
def test_each_layout_gives_the_same_labels(modules: Any, name: str, text: str):
    assert queries(modules, name, text) == {"one": {"two": 1, "four": 0, "zero": 0}}


def test_layouts_are_read_like_by_the_library_s_own_reader(modules: Any, written: Write):
    examples = pytest.importorskip("rankrt_finetune.data.examples", reason="needs the extra finetune")
    text = (
        '{"query": "a", "pos": ["x", "y"], "neg": ["z"]}\n{"query": "b", "passage": "u", "label": 1}\n'
        '{"query": "b", "passage": "v", "label": 0}\n{"query": "c", "positive": "s", "negative": "t"}\n'
    )
    found = examples.read_examples(written("a.jsonl", text))
    expected = {one.query: dict(zip(one.passages, one.labels, strict=True)) for one in found}
    assert queries(modules, "a.jsonl", text) == expected


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: this is not JSON; expected"),
        ("[1]", "line 2: expected {"),
        ('"text"', "line 2: expected {"),
        ('{"passage": "two", "label": 1}', "line 2: query is missing"),
        ('{"query": " ", "pos": ["two"]}', 'line 2: query is " ", expected a text that is not empty'),
        ('{"query": 5, "pos": ["two"]}', "line 2: query is 5, expected a text"),
        ('{"query": "a", "pos": "two", "neg": ["x"]}', 'line 2: pos is "two", expected a list of texts'),
        ('{"query": "a", "pos": ["two", 3]}', "line 2: pos 2 is 3, expected a text"),
        ('{"query": "a", "pos": [], "neg": ["x"]}', "line 2: no passage answers this query"),
        ('{"query": "a", "passage": "two", "label": "high"}', 'line 2: label is "high", expected a whole number'),
        ('{"query": "a", "passage": "two", "label": -1}', "line 2: label is -1"),
        ('{"query": "a", "passage": "two", "label": 0.5}', "line 2: label is 0.5"),
        ('{"query": "a", "passage": "two", "label": null}', "line 2: label is null"),
        ('{"query": "a", "passage": "two", "label": [1]}', "line 2: label is [1]"),
        ('{"query": "a", "passage": "two", "label": ""}', 'line 2: label is ""'),
        ('{"query": "a", "passage": "x", "text": "y", "label": 1}', "line 2: passage and text are both there"),
        ('{"query": "a", "label": 1}', "line 2: passage is missing"),
        ('{"query": "a", "positive": "x"}', "line 2: negative is missing"),
        ('{"query": "a", "id": 5}', "line 2: it has only query, id; expected"),
        ('{"query": "one", "passage": "two", "label": 0}', "line 2: this passage has the label 0, but 1 at line 1"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(modules: Any, line: str, told: str):
    good = '{"query": "one", "pos": ["two"], "neg": ["four"]}'
    (error,) = call(modules, "labelled.js", "queriesOf", "a.jsonl", f"{good}\n{line}")["errors"]
    assert error.startswith(told)


def measure(page: Any, path: Path) -> None:
    page.set_input_files("#labelled", path)
    page.click("#measure")
    page.wait_for_selector("#measure:enabled")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", "", ["a.jsonl has no queries; expected lines of"]),
        ("a.json", "[{", ["a.json: it is not JSON"]),
        ("a.csv", "query,passage,label\none,two\n", ["a.csv: line 2 has 2 cells, but the header has 3"]),
        ("a.jsonl", "\x00", ["a.jsonl: it is not text"]),
        ("a.jsonl", "{\n" * 25, [*[f"line {n}: this is not JSON" for n in range(1, 21)], "and 5 more"]),
    ],
)
def test_errors_of_a_file_are_listed_and_nothing_is_ranked(
    page: Any, written: Write, name: str, text: str, told: list[str]
):
    measure(page, written(name, text))
    errors = page.locator("#errors li").all_inner_texts()
    assert len(errors) == len(told)
    assert all(error.startswith(start) for error, start in zip(errors, told, strict=True)), errors
    assert "so nothing was ranked" in said(page, "progress")
    assert page.locator("#measured table").count() == 0


def test_measures_are_ir_measures(modules: Any):
    measures = pytest.importorskip("rankrt_finetune.evaluation.measures", reason="needs the extra evaluate")
    drawn = random.Random(0)
    rankings = [drawn.choices([0, 0, 0, 1, 2, 3], k=drawn.randint(1, 30)) for _ in range(60)]
    rankings = [labels if any(labels) else [*labels, 1] for labels in rankings]
    names = {str(i): [str(k) for k in range(len(labels))] for i, labels in enumerate(rankings)}
    grades = {query: dict(zip(ids, rankings[int(query)], strict=True)) for query, ids in names.items()}
    expected = measures.Measures.of(["nDCG@10", "MRR@10"]).values(grades, names)
    found = [[call(modules, "measures.js", name, each) for name in ("ndcg", "reciprocalRank")] for each in rankings]
    assert np.abs(np.array(found) - expected).max() < 1e-12  # rounding of sums of ten


def test_the_uncertainty_of_a_mean_is_1_96_standard_errors(modules: Any):
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    values = [random.Random(1).random() for _ in range(30)]
    assert call(modules, "measures.js", "uncertainty", values) == pytest.approx(1.96 * stats.sem(values), rel=1e-12)
    assert [call(modules, "measures.js", "median", given) for given in ([3, 1, 2], [4, 1, 2, 3])] == [2, 2.5]


def cells(page: Any, table: int) -> list[list[str]]:
    rows = page.locator(f"#measured table >> nth={table} >> tbody tr")
    return [rows.nth(i).locator("th, td").all_inner_texts() for i in range(rows.count())]


def test_both_sides_are_measured_and_the_difference_is_shown(compared: Any, written: Write):
    """The first model ranks "four" before "two", the second one the other way round."""
    lines = [{"query": "one", "pos": ["two"], "neg": ["four"]}, {"query": "zero", "pos": ["four"], "neg": ["two"]}]
    lines.append({"query": "three", "pos": ["two"], "neg": ["four", "zero"]})
    measure(compared, written("a.jsonl", "\n".join(map(json.dumps, lines))))
    ndcg, mrr, time = cells(compared, 0)
    second = 1 / 1.584962500721156  # a passage at rank 2
    assert ndcg == ["nDCG@10", f"{(1 + 2 * second) / 3:.4f}", f"{(2 + second) / 3:.4f}", f"+{(1 - second) / 3:.4f}"]
    assert mrr == ["MRR@10", "0.6667", "0.8333", "+0.1667"]
    assert time[0] == "median time"
    assert "B ranks 2 queries better than A, 1 worse, and 0 alike" in said(compared, "measured")
    assert said(compared, "progress") == "3 queries of a.jsonl ranked."
    assert len(cells(compared, 1)) == 3


def test_a_query_of_the_file_is_opened_with_its_labels(page: Any, written: Write):
    measure(page, written("a.csv", "query,passage,label\none,two,2\none,four,0\nzero,three,1\n"))
    ((query, ndcg),) = cells(page, 1)
    assert (query, ndcg) == ("one line 2", "0.6309")
    page.click("#measured button")
    page.wait_for_selector(".hits li")
    assert page.input_value("#query") == "one"
    assert texts(page) == ["four", "two"]
    assert page.locator(".label").all_inner_texts() == ["label 0", "label 2"]
    page.fill("#documents", "two")
    page.click("#go")
    page.wait_for_selector(".hits li:only-child")
    assert page.locator(".label").count() == 0, "another request has no labels"


def test_a_query_that_fails_is_named_by_its_line_and_left_out_on_both_sides(compared: Any, written: Write):
    lines = [{"query": "one", "pos": ["nan"], "neg": ["two"]}, {"query": "two", "pos": ["two"], "neg": ["zero"]}]
    measure(compared, written("a.jsonl", "\n".join(map(json.dumps, lines))))
    (error,) = compared.locator("#errors li").all_inner_texts()
    assert error.startswith("line 1: ")
    assert "answered nan for" in error
    assert said(compared, "progress") == "1 of 2 queries of a.jsonl ranked."
    assert cells(compared, 0)[0][1:3] == ["1.0000", "1.0000"]


def test_a_busy_server_is_asked_again_when_it_says(page: Any, written: Write):
    refusal = {"status": 429, "headers": {"retry-after": "1"}, "json": {"kind": "overloaded", "message": "full"}}
    page.route("**/rankrt/rerank", lambda route: route.fulfill(**refusal), times=1)
    page.set_input_files("#labelled", written("a.jsonl", '{"query": "one", "pos": ["two"]}'))
    page.click("#measure")
    page.wait_for_selector("#progress:has-text('The server is busy. The next try is in 1 s.')")
    page.wait_for_selector("#measured table")
    assert said(page, "progress") == "1 query of a.jsonl ranked."


def test_a_long_file_can_be_stopped_and_what_was_ranked_is_shown(page: Any, written: Write):
    lines = [json.dumps({"query": f"one {n}", "pos": ["two"], "neg": ["zero"]}) for n in range(5000)]
    page.set_input_files("#labelled", written("a.jsonl", "\n".join(lines)))
    page.click("#measure")
    page.wait_for_selector("#progress:has-text(' of 5,000 queries ranked')")
    page.click("#stop")
    page.wait_for_selector("#measured table")
    assert "of 5,000 queries of a.jsonl ranked." in said(page, "progress")


def test_a_file_is_asked_for(page: Any):
    page.click("#measure")
    assert said(page, "progress") == "Choose a file first."
