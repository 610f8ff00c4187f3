"""Files of questions, in FlagEmbedding's fine-tuning format."""

from pathlib import Path

import pytest

from rankrt_export.errors import TextError
from rankrt_export.text.texts import parse, read_texts, sample


def test_a_line_is_a_query_with_its_passages():
    texts = parse(b'{"query": "q", "pos": ["a"], "neg": ["b", "c"], "prompt": "p", "neg_scores": [1, 2.5]}\n\n', "x")
    assert texts.pairs == [("q", "a"), ("q", "b"), ("q", "c")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x has no text; expected lines of"),
        (b"\n\n", "x has no text"),
        (b"{", "x, line 1: Input data was truncated"),
        (b'{"query": "q", "pos": ["a"]}\n{"pos": ["a"]}', "x, line 2: Object missing required field `query`"),
        (b'{"query": "q", "pos": "a"}', "x, line 1: Expected `array`, got `str`"),
        (b'{"query": "q"}', "an empty query, or no passage"),
        (b'{"query": " ", "pos": ["a"]}', "an empty query, or no passage"),
        (b"\xff", "x, line 1"),
    ],
)
def test_what_is_not_such_a_line_is_named_with_its_number(content: bytes, message: str):
    with pytest.raises(TextError, match=message):
        parse(content, "x")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path):
    with pytest.raises(TextError, match="cannot be read: No such file or directory"):
        read_texts(tmp_path / "none.jsonl")


def test_the_sample_has_many_languages_and_long_rows():
    questions = sample().questions
    assert len(questions) >= 13
    assert max(len(passage) for _, passage in sample().pairs) > 3000


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path):
    content = b'{"query": "who?", "pos": ["me"]}\n'
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    assert read_texts(tmp_path / "marked.jsonl").pairs == parse(content, "x").pairs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"query": "who?", "pos": ["me"]}\n\n{"query": "caf\xe9", "pos": ["me"]}\n', "line 3 is not UTF-8"),
        (b'{"query": "who?", "pos": ["me"]}\r\n\x0c{"query"\r\n', "line 2"),
        (b"\xff\xfe{\x00", "line 1 is not UTF-8"),
        (b"[" * 100000, "line 1"),
        (b'{"query": "\\ud800", "pos": ["me"]}', "line 1"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "text.jsonl").write_bytes(content)
    with pytest.raises(TextError, match=rf"text\.jsonl, {message}"):
        read_texts(tmp_path / "text.jsonl")
