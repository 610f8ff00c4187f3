"""What the command line reads: lines of text, JSON, CSV and TSV, in whatever state files come."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt import InputError
from rankrt.cli.inputs import (
    FORMATS,
    Document,
    Format,
    format_of,
    lines,
    open_input,
    read_documents,
    read_pairs,
    read_queries,
)


def documents(content: bytes, name: str = "documents.txt", **options: Any) -> list[Document]:
    return read_documents(io.BytesIO(content), name, **options)


def texts(content: bytes, name: str = "documents.txt", **options: Any) -> list[str]:
    return [document.text for document in documents(content, name, **options)]


def refused(content: bytes, name: str = "documents.txt", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        documents(content, name, **options)
    return str(error.value)


def test_text_has_a_document_a_line_and_none_in_a_blank_one():
    found = documents(b"one\n \ntwo \r\n\r\nthree")
    assert [(document.index, document.text) for document in found] == [(0, "one"), (2, "two "), (4, "three")]
    assert str(found[1].place) == "documents.txt, line 3"


@pytest.mark.parametrize("character", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_a_newline_ends_a_line(character: str):
    assert texts(f"one{character}two\nthree\n".encode()) == [f"one{character}two", "three"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["documents.txt", "documents.jsonl", "documents.csv"])
def test_a_byte_order_mark_is_not_a_part_of_the_first_document(encoding: str, name: str):
    written = {"documents.txt": "café\nb", "documents.jsonl": '"café"\n"b"', "documents.csv": "text\ncafé\nb"}
    assert texts(written[name].encode(encoding), name) == ["café", "b"]


def test_big_endian_utf_16_is_read_too():
    assert texts(b"\xfe\xff" + "café\n".encode("utf-16-be")) == ["café"]


def test_a_file_of_nothing_but_a_mark_is_empty():
    assert texts(b"\xef\xbb\xbf") == texts(b"\xff\xfe") == texts(b"") == texts(b"\n\n") == []


def test_gzip_is_unpacked_whatever_its_name():
    packed = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert texts(packed, "documents.txt.gz") == texts(packed, "-") == ["one", "two"]
    assert texts(gzip.compress(b'{"text": "one"}'), "documents.jsonl.gz") == ["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ncaf\xe9\n", "documents.txt, line 2 is not UTF-8 (byte 0xe9 after 3 characters). Convert the file"),
        ("one\n".encode("utf-16-le"), "documents.txt, line 1 has a NUL byte"),
        (b"\xff\xfeo", "documents.txt begins with the mark of UTF-16 but is not"),
        (gzip.compress(b"one\n" * 999, mtime=0)[:-9], "documents.txt cannot be read to its end"),
        (b"\x1f\x8bnot gzip at all", "documents.txt cannot be read to its end"),
        (b"PK\x03\x04\x14\x00", "documents.txt is a zip archive or an Excel workbook"),
        (b"PAR1\x15\x04\x15", "documents.txt is a Parquet file"),
    ],
)
def test_what_is_not_text_is_named(content: bytes, message: str):
    assert message in refused(content)


def test_a_text_may_begin_as_a_parquet_file_does():
    assert texts(b"PAR1 is four letters\n") == ["PAR1 is four letters"]


@pytest.mark.parametrize("content", [b'"one"\n{"text": "two", "id": 7}\n', b'["one", {"text": "two", "id": 7}]'])
@pytest.mark.parametrize("name", ["documents.jsonl", "documents.json", "documents.ndjson"])
def test_json_is_a_value_a_line_or_an_array(content: bytes, name: str):
    found = documents(content, name)
    assert [(document.index, document.text) for document in found] == [(0, "one"), (1, "two")]
    assert (found[0].id, found[1].id, found[1].fields) == ("0", "7", {"id": 7})


def test_an_array_may_take_many_lines_and_names_items():
    content = b'\n[\n  "one",\n  {"text": null}\n]\n'
    assert refused(content, "documents.json").startswith("documents.json, item 2: 'text' is null")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"one"\noops\n', "documents.jsonl, line 2 is not JSON: Expecting value, at column 1"),
        (b'[\n"one",\n"two\n]\n', "documents.jsonl, line 3 is not JSON"),
        (b'"one"\n7\n', 'line 2: expected a string or an object with "text", got 7'),
        (b'{"body": "one"}', "line 1: none of text, document, passage, content is there as the text"),
        (b'{"passage": "a", "content": "b"}', "line 1: passage and content could both be the text"),
        (b'"one"\n"cut \\ud83d"\n', "line 2 has half of a character (\\ud83d)"),
        (b'{"text": "one", "id": "\\uDE00"}', "line 1 has half of a character (\\ude00)"),
        (b'{"text": "one", "score": NaN}', "line 1 is not JSON: NaN is not a number in JSON; write null"),
        (b'{"text": "one", "score": 1e999}', "line 1 is not JSON: 1e999 is too large for a number"),
        (b'{"text": "one", "n": ' + b"1" * 5000 + b"}", "line 1 is not JSON"),
        (b'{"text": ' + b"[" * 100_000, "line 1 is nested too deeply"),
    ],
)
def test_wrong_json_is_an_error_with_its_line(content: bytes, message: str):
    assert message in refused(content, "documents.jsonl")


def test_a_whole_emoji_may_be_escaped():
    assert texts(b'"\\ud83d\\ude00"', "documents.jsonl") == ["\N{GRINNING FACE}"]


def test_numbers_beside_a_text_stay_as_they_are():
    (found,) = documents(b'{"text": "one", "id": 12345678901234567890123, "score": 0.1}', "documents.jsonl")
    assert json.dumps(found.fields) == '{"id": 12345678901234567890123, "score": 0.1}'


def test_csv_has_its_text_in_a_column_known_by_name():
    content = b'id,text\n7,"one, ""two""\nthree"\n\n8,four\n'
    found = documents(content, "documents.csv")
    assert [document.text for document in found] == ['one, "two"\nthree', "four"]
    assert [(document.index, document.id, document.place.number) for document in found] == [(0, "7", 2), (1, "8", 5)]


def test_a_column_can_be_named_or_numbered():
    assert texts(b"id\ttitle\n7\tone\n", "documents.tsv", column="title") == ["one"]
    assert texts(b"7\tone\n8\ttwo\n", "collection.tsv", column="2") == ["one", "two"]
    assert texts(b'{"title": "one"}', "documents.jsonl", column="title") == ["one"]


def test_a_quote_is_a_character_in_tsv_and_not_in_csv():
    assert texts(b'1\t"one" he said\n2\t"two\n', "collection.tsv", column="2") == ['"one" he said', '"two']
    assert texts(b'text\n"one, ""two"""\n', "documents.csv") == ['one, "two"']


def test_a_cell_may_be_longer_than_the_csv_module_allows_by_default():
    assert texts(b"text\n" + b"a" * 200_000, "documents.csv") == ["a" * 200_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,body\n7,one\n", "line 2: none of text, document, passage, content is there"),
        (b"id,text\n7\n", "line 2 has 1 cells, but the first row has 2"),
        (b"text,text\n7,8\n", "line 1: two columns have the same name"),
        (b'text\none\n"two\n', "line 3 is not a row of cells: unexpected end of data"),
        (b'text\n"one" two\n', "line 2 is not a row of cells"),
        (b"text\none\rtwo\n", "line 2 is not a row of cells"),
    ],
)
def test_wrong_csv_is_an_error_with_its_line(content: bytes, message: str):
    assert message in refused(content, "documents.csv")


@pytest.mark.parametrize(
    "content",
    [b'{"text": "one"}\n', b'["one"]', b'[\n"one"\n]', b"{\n}", b'"one"\n"two"\n', b'\n  {"text": "one"}\r\n'],
)
def test_json_is_not_ranked_as_text_unless_the_format_says_so(content: bytes):
    assert "looks like JSON. Say --format jsonl" in refused(content, "-")
    assert texts(content, "-", format="text")


@pytest.mark.parametrize(
    "content", [b"[1] a reference\n", b'"Quoted," he said.\n', b'"quoted"\nnot\n', b"{braces} a\n"]
)
def test_text_that_only_begins_as_json_does_is_text(content: bytes):
    assert len(texts(content, "-")) == content.count(b"\n")


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.jsonl", "jsonl"), ("A.JSON", "json"), ("a.csv.gz", "csv"), ("b/a.tsv", "tsv"), ("a.txt", None), ("-", None)],
)
def test_a_format_is_known_by_the_name(name: str, format: Format | None):
    assert format_of(name) == format


def test_a_column_of_text_is_refused():
    assert "is read as text, which has no columns" in refused(b"one", column="text")


def test_queries_are_texts_or_objects_with_candidates_of_their_own():
    content = b'"one"\n{"query": "two", "id": "q2", "documents": ["a", {"text": "b", "id": "d2"}]}\n{"text": "three"}'
    first, second, third = read_queries(io.BytesIO(content), "queries.jsonl")
    assert (first.text, first.id, first.documents) == ("one", "0", None)
    assert (second.text, second.id, second.fields) == ("two", "q2", {"id": "q2"})
    assert [(document.id, document.text) for document in second.documents or ()] == [("0", "a"), ("d2", "b")]
    assert third.text == "three"


def test_queries_that_look_like_objects_are_read_as_such_whatever_the_name():
    for content, text in [
        (b'{"query": "one"}', "one"),
        (b'["one"]', "one"),
        (b'"an exact phrase"', '"an exact phrase"'),
    ]:
        (query,) = read_queries(io.BytesIO(content), "-")
        assert query.text == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'""', 'queries.jsonl, line 1: expected {"query": ...} with a text that is not empty'),
        (b'{"question": "one"}', "line 1: expected"),
        (b'{"query": "one", "documents": "two"}', 'line 1: "documents" is "two", expected an array'),
        (b'{"query": "one", "documents": ["a", 2]}', "queries.jsonl, line 1, item 2: expected a string"),
    ],
)
def test_wrong_queries_are_errors_with_their_line(content: bytes, message: str):
    with pytest.raises(InputError) as error:
        read_queries(io.BytesIO(content), "queries.jsonl")
    assert message in str(error.value)


def test_pairs_come_as_they_are_read_with_what_stands_beside_them():
    content = b'{"query": "one", "passage": "", "id": 7}\noops\n'
    pairs = read_pairs(io.BytesIO(content), "-")
    first = next(pairs)
    assert (first.pair, first.fields, str(first.place)) == (("one", ""), {"id": 7}, "standard input, line 1")
    with pytest.raises(InputError, match="standard input, line 2 is not JSON"):
        next(pairs)


def test_pairs_are_read_from_csv_and_from_an_array():
    for content, name in [(b"query,passage\none,two\n", "p.csv"), (b'[{"query": "one", "passage": "two"}]', "p.json")]:
        assert [placed.pair for placed in read_pairs(io.BytesIO(content), name)] == [("one", "two")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("/no/file", "/no/file cannot be read: No such file"), (".", "Is a directory"), ("a\0b", "null byte")],
)
def test_what_cannot_be_opened_is_an_error(name: str, message: str):
    with pytest.raises(InputError, match=message):
        open_input(name)


def test_a_file_that_fails_while_it_is_read_is_an_error():
    with open_input("/proc/self/mem") as file, pytest.raises(InputError, match="/proc/self/mem cannot be read to its"):
        list(lines(file, "/proc/self/mem"))


def test_a_file_is_read_line_by_line_and_not_as_a_whole(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"query": "one", "passage": "two"}\n' * 100_000)
    with open_input(str(path)) as file:
        next(read_pairs(file, str(path)))
        assert file.tell() < 1 << 18


# Bytes that mean something to one of the readers, between any others.
_PIECES = [b"\n", b"\r", b"\0", b'"', b",", b"\t", b"[", b"{", b"}", b"]", b":", b"\\ud83d", b"\xe9", b"\xef\xbb\xbf"]
_PIECES += [b'"text"', b'"query"', b'"passage"', b"text", b"NaN", b"1e999", b"null", b"\xff\xfe", b"\x1f\x8b", b"a"]
_FILES = st.one_of(st.binary(), st.lists(st.sampled_from(_PIECES), max_size=30).map(b"".join))


@given(content=_FILES, is_packed=st.booleans(), format=st.sampled_from([None, *FORMATS]), column=st.none() | st.text())
def test_any_bytes_are_documents_with_their_lines_or_an_error_that_names_the_file(
    content: bytes, is_packed: bool, format: Format | None, column: str | None
):
    written = gzip.compress(content) if is_packed else content
    try:
        found = documents(written, "documents.txt", format=format, column=column)
    except InputError as error:
        assert "documents.txt" in str(error) and "\n" not in str(error)
        return
    assert all(document.text.encode() is not None for document in found)
    indices = [document.index for document in found]
    assert indices == sorted(set(indices))
    if format == "text" and not content.startswith((b"\xff\xfe", b"\x1f\x8b")):
        numbered = content.split(b"\n")
        assert all(document.text.encode() in numbered[document.index] for document in found)


@given(content=_FILES, ending=st.sampled_from(["txt", *FORMATS]))
def test_any_bytes_are_queries_or_pairs_or_an_error_that_names_the_file(content: bytes, ending: str):
    for read in (read_queries, read_pairs):
        try:
            assert all(list(read(io.BytesIO(content), f"some.{ending}")))
        except InputError as error:
            assert f"some.{ending}" in str(error)
