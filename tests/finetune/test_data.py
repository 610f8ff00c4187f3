"""Files of examples: three layouts, what is wrong with a line, and the two parts of a data set."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rankrt.errors import InputError
from rankrt_finetune.data.corpus import read_corpus
from rankrt_finetune.data.examples import Example, read_examples
from rankrt_finetune.data.split import overlap, part

PANDA = {"query": "what is a panda?", "pos": ["A bear."], "neg": ["A fish.", "A car."]}


def written(folder: Path, *rows: Any, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(folder: Path, *rows: Any, name: str = "train.jsonl") -> list[Example]:
    return list(read_examples(written(folder, *rows, name=name)))


def test_flagembedding_s_layout_is_read_and_written_again(tmp_path: Path):
    row = PANDA | {"pos_scores": [8.5], "neg_scores": [-2.0, -3.25], "prompt": "Is it?", "id": "q7"}
    (example,) = read(tmp_path, row)
    assert (example.labels, example.scores) == ((1, 0, 0), (8.5, -2.0, -3.25))
    assert json.loads(example.line()) == row
    assert read(tmp_path, example.line()) == [example]


def test_labelled_pairs_that_follow_each_other_are_one_example(tmp_path: Path):
    pairs = [
        {"query": "q", "passage": "good", "label": 1, "score": 3},
        {"query": "q", "passage": "bad", "label": 0, "score": -1},
        {"query": "r", "document": "fine", "label": True},
    ]
    first, second = read(tmp_path, *pairs)
    assert (first.query, first.pos, first.neg, first.scores) == ("q", ("good",), ("bad",), (3.0, -1.0))
    assert (second.query, second.pos, second.neg, second.scores) == ("r", ("fine",), (), None)
    assert second.place.number == 3


def test_triplets_are_grouped_and_repeat_nothing(tmp_path: Path):
    rows = ["query,positive,negative", "q,good,bad", "q,good,worse", "r,fine,poor"]
    first, second = read(tmp_path, *rows, name="triplets.csv")
    assert (first.pos, first.neg) == (("good",), ("bad", "worse"))
    assert (second.pos, second.neg) == (("fine",), ("poor",))


def test_a_file_may_be_packed_and_is_read_as_a_stream(tmp_path: Path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(PANDA) + "\nnot json\n").encode()))
    examples = read_examples(path)
    assert next(examples).query == PANDA["query"]
    with pytest.raises(InputError, match=r"train\.jsonl\.gz, line 2 is not JSON"):
        next(examples)


BAD = {
    "pos is empty": PANDA | {"pos": []},
    "there is no query": {"pos": ["a"], "neg": []},
    'query is " ", expected a text': PANDA | {"query": " "},
    "pos 1 is 3, expected a text": PANDA | {"pos": [3]},
    'neg 2 is "", expected a text': PANDA | {"neg": ["a", ""]},
    'pos is "a", expected a list': PANDA | {"pos": "a"},
    "neg 2 is one of pos as well": PANDA | {"neg": ["A fish.", "A bear."]},
    "neg_scores has 1 numbers, but neg has 2": PANDA | {"pos_scores": [1], "neg_scores": [1]},
    'pos_scores has "high", expected a number': PANDA | {"pos_scores": ["high"], "neg_scores": [1, 2]},
    "NaN is not a number": '{"query": "q", "pos": ["a"], "pos_scores": [NaN]}',
    "pos_scores but no neg_scores": PANDA | {"pos_scores": [1]},
    "neg_scores but no pos_scores": PANDA | {"neg_scores": [1, 2]},
    "prompt is 3, expected a text": PANDA | {"prompt": 3},
    "has only query, answers; expected": {"query": "q", "answers": []},
    "label is 2, expected 0 or 1": {"query": "q", "passage": "a", "label": 2},
    "no line of this query has a passage that answers it": {"query": "q", "passage": "a", "label": 0},
    "passage and document are both there": {"query": "q", "passage": "a", "document": "b", "label": 1},
    "there is no negative": {"query": "q", "positive": "a"},
    'expected {"query"': ["q"],
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_with_a_line_is_said_with_its_number(tmp_path: Path, message: str):
    with pytest.raises(InputError, match=rf"train\.jsonl, line 2\b.*{re.escape(message)}"):
        read(tmp_path, {"query": "fine", "pos": ["p"], "neg": ["n"]}, BAD[message])


def test_a_query_of_pairs_that_comes_back_is_refused(tmp_path: Path):
    pairs = [{"query": query, "passage": "p", "label": 1} for query in ("q", "r", "q")]
    with pytest.raises(InputError, match="line 3: the same query already stands at line 1"):
        read(tmp_path, *pairs)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_are_read_as_lines_are_and_errors_name_the_row(tmp_path: Path, ending: str):
    pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    lines: list[dict[str, Any]] = [
        {"query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1.0, 2.0], "neg_scores": [0.5], "id": 7},
        {"query": "r", "pos": ["d"], "neg": [], "pos_scores": None, "neg_scores": None, "id": 8},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_columns(pa, tmp_path / f"data.{ending}", lines)
    written = [[example.line() for example in read_examples(tmp_path / f"data.{e}")] for e in ("jsonl", ending)]
    assert written[0] == written[1]
    write_columns(pa, tmp_path / f"bad.{ending}", [*lines, {"query": " ", "pos": ["e"]}])
    with pytest.raises(InputError, match=rf"bad\.{ending}, row 3: query is"):
        list(read_examples(tmp_path / f"bad.{ending}"))


def write_columns(pa: Any, path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
        return
    from pyarrow import parquet

    parquet.write_table(table, path)


def test_pairs_have_all_scores_or_none(tmp_path: Path):
    pairs = [{"query": "q", "passage": "p", "label": 1, "score": 2}, {"query": "q", "passage": "n", "label": 0}]
    with pytest.raises(InputError, match="line 1: some lines of this query have a score and others do not"):
        read(tmp_path, *pairs)


def test_a_file_without_lines_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"train\.jsonl has no examples"):
        read(tmp_path)


def test_all_lines_of_a_query_are_held_out_or_none(tmp_path: Path):
    rows = [PANDA | {"query": f"{spelled} {i}"} for i in range(200) for spelled in ("Question", "  question")]
    examples = read(tmp_path, *rows)
    train, held_out = (list(part(examples, which, 0.2, seed=1)) for which in ("train", "held_out"))
    assert len(train) + len(held_out) == 400
    assert 50 < len(held_out) < 110  # the mean is 80 with a standard deviation of 11 (two lines a query)
    assert overlap(train, held_out).n_queries == 0
    assert held_out != list(part(examples, "held_out", 0.2, seed=2))


def test_what_stands_in_both_parts_is_counted(tmp_path: Path):
    train = read(tmp_path, PANDA, PANDA | {"query": "another"}, PANDA | {"query": "third", "pos": ["x"]})
    held_out = read(tmp_path, PANDA | {"query": "What is  a PANDA?"})
    found = overlap(train, held_out)
    assert (found.n_queries, found.n_positives) == (1, 2)
    assert found.first is not None and found.first.number == 1


def test_a_corpus_needs_no_ids_and_has_each_text_once(tmp_path: Path):
    rows = [{"text": "one"}, {"_id": "7", "title": "Two", "text": "two"}, {"text": "One"}]
    assert read_corpus(written(tmp_path, *rows)) == ("one", "Two two")
    assert read_corpus(written(tmp_path, "one", "two", name="corpus.txt")) == ("one", "two")


def test_a_corpus_with_an_id_twice_or_an_empty_text_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"line 2: the id 7 is also that of line 1"):
        read_corpus(written(tmp_path, {"id": 7, "text": "a"}, {"id": "7", "text": "b"}))
    with pytest.raises(InputError, match=r"line 1: the text is empty"):
        read_corpus(written(tmp_path, {"id": 7, "text": " "}))
    with pytest.raises(InputError, match="has no passages"):
        read_corpus(written(tmp_path))
