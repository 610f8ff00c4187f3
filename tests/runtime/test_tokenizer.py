"""Pairs to rows: FlagEmbedding's rule, transformers' rule, windows, and text that is none."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rankrt import ArtifactError, InputError, Rules
from rankrt.artifact.manifest import Template
from rankrt.text.options import Side, longest_first, windows
from rankrt.text.pairs import Encoded, PairTokenizer
from rankrt.text.tokenizers import LibraryTokenizer
from tests.support import TEMPLATE, tiny_tokenizer

S, END, ONE, TWO, THREE, FOUR = 0, 2, 5, 6, 7, 8

UNIGRAM = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint" / "tokenizer.json"

words = st.lists(st.sampled_from(["one", "two", "three", "four", "unknown"]), max_size=60).map(" ".join)


@cache
def tokenizer_of(kind: str) -> LibraryTokenizer:
    return LibraryTokenizer(tiny_tokenizer() if kind == "words" else Tokenizer.from_file(str(UNIGRAM)))


def encode(pairs: list[tuple[str, str]], **rules: Any) -> Encoded:
    return PairTokenizer(LibraryTokenizer(tiny_tokenizer()), TEMPLATE).encode(pairs, Rules(**rules))


def test_a_row_is_prefix_query_separator_passage_suffix():
    encoded = encode([("one", "two three")])
    assert encoded.ids.tolist() == [S, ONE, END, END, TWO, THREE, END]
    assert encoded.offsets.tolist() == [0, 7]
    assert encoded.passage_starts.tolist() == [4]


def test_rows_lie_one_behind_the_other():
    encoded = encode([("one", "two"), ("one", ""), ("three", "two two")])
    assert encoded.lengths.tolist() == [6, 5, 7]
    assert encoded.row(1).tolist() == [S, ONE, END, END, END]
    assert encoded.pair_of_row.tolist() == [0, 1, 2]


def test_no_pairs_are_no_rows():
    encoded = encode([])
    assert encoded.n_rows == 0
    assert encoded.ids.dtype == np.int32


def test_only_the_passage_is_cut_once_the_query_has_three_quarters():
    encoded = encode([("one " * 20, "two " * 20)], max_length=20)
    assert encoded.ids.tolist() == [S] + [ONE] * 15 + [END, END] + [TWO] + [END]
    assert encoded.query_truncated.tolist() == [True]
    assert encoded.truncated.tolist() == [True]


def test_texts_lose_their_beginning_if_that_is_asked_for():
    numbers = "one two three four"
    encoded = encode([(numbers, numbers)], max_length=10, query_max_length=3, truncation_side="left")
    assert encoded.ids.tolist() == [S, TWO, THREE, FOUR, END, END, TWO, THREE, FOUR, END]
    assert (encoded.truncated.tolist(), encoded.query_truncated.tolist()) == ([True], [True])
    both = encode([(numbers, numbers)], max_length=8, truncation="longest_first", truncation_side="left")
    assert both.ids.tolist() == [S, THREE, FOUR, END, END, THREE, FOUR, END]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_passage_is_looked_at_no_further_than_its_own_limit(side: str):
    encoded = encode([("one", "two three four")], passage_max_length=2, truncation_side=side)
    assert encoded.row(0).tolist()[4:-1] == ([THREE, FOUR] if side == "left" else [TWO, THREE])
    assert encoded.truncated.tolist() == [True]
    assert encode([("one", "two three")], passage_max_length=2).truncated.tolist() == [False]


def test_windows_cover_no_more_of_a_passage_than_its_limit():
    rules = {"max_length": 13, "long_documents": "chunk", "passage_max_length": 20}
    right = encode([("one", "two " * 20 + "three " * 20)], **rules)
    assert set(right.ids.tolist()) == {S, ONE, END, TWO}
    assert right.truncated.tolist() == [True]
    left = encode([("one", "two " * 20 + "three " * 20)], truncation_side="left", **rules)
    assert set(left.ids.tolist()) == {S, ONE, END, THREE}
    assert int(left.spans.min()) == 80


def test_a_row_that_fits_exactly_is_not_truncated():
    encoded = encode([("one", "two " * 11), ("one", "two " * 12)], max_length=16)
    assert encoded.lengths.tolist() == [16, 16]
    assert encoded.truncated.tolist() == [False, True]


@given(query=words, passage=words, max_length=st.integers(24, 80))
def test_only_passage_is_what_tokenizers_calls_only_second(query: str, passage: str, max_length: int):
    tokenizer = tiny_tokenizer()
    short_query = " ".join(query.split()[: max_length * 3 // 4])
    tokenizer.enable_truncation(max_length, strategy="only_second")
    expected = tokenizer.encode(short_query, passage).ids
    assert encode([(query, passage)], max_length=max_length).ids.tolist() == expected


@given(query=words, passage=words, max_length=st.integers(6, 80))
def test_longest_first_is_what_tokenizers_does(query: str, passage: str, max_length: int):
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    expected = tokenizer.encode(query, passage).ids
    assert encode([(query, passage)], max_length=max_length, truncation="longest_first").ids.tolist() == expected


@pytest.mark.parametrize(
    ("n_query", "n_passage", "room", "expected"),
    [(3, 4, 9, (3, 4)), (3, 9, 9, (3, 6)), (9, 3, 9, (6, 3)), (9, 9, 9, (4, 5)), (10, 9, 9, (5, 4)), (0, 9, 4, (0, 4))],
)
def test_longest_first_by_hand(n_query: int, n_passage: int, room: int, expected: tuple[int, int]):
    assert longest_first(n_query, n_passage, room) == expected


@given(text=st.text(alphabet=" \n\tabcde,.é́ß你好🐼", max_size=400), max_length=st.integers(8, 12))
def test_a_long_passage_is_tokenized_as_far_as_needed_and_comes_out_the_same(text: str, max_length: int):
    rules = Rules(max_length=max_length)
    whole = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    encoded = PairTokenizer(LibraryTokenizer(tiny_tokenizer()), TEMPLATE).encode([("one", text)], rules)
    kept = encoded.row(0)[encoded.passage_starts[0] : -1].tolist()
    assert kept == whole[: len(kept)]
    assert encoded.truncated[0] == (len(kept) < len(whole))


@pytest.mark.parametrize("kind", ["words", "unigram"])
@pytest.mark.parametrize("side", ["left", "right"])
@given(text=st.text(alphabet=" \n\tabcde,.ß你好🐼", min_size=1, max_size=300), max_length=st.integers(8, 30))
def test_the_characters_that_are_told_of_a_cut_passage_have_the_tokens_of_its_row(
    kind: str, side: Side, text: str, max_length: int
):
    tokenizer = tokenizer_of(kind)
    rules = Rules(max_length=max_length, query_max_length=1, truncation_side=side)
    pairs = PairTokenizer(tokenizer, TEMPLATE)
    encoded, plain = pairs.encode([("one", text)], rules, wants_spans=True), pairs.encode([("one", text)], rules)
    assert encoded.ids.tolist() == plain.ids.tolist()
    (start, stop), kept = encoded.spans[0].tolist(), encoded.row(0)[encoded.passage_starts[0] : -1].tolist()
    if not encoded.truncated[0]:
        assert (start, stop) == (0, len(text))
    (whole,) = tokenizer.located([text])
    first, last = (0, len(kept)) if side == "right" else (len(whole.ids) - len(kept), len(whole.ids))
    assert whole.ids[first:last].tolist() == kept
    if kept:
        assert (start <= whole.spans[first, 0], stop >= whole.spans[last - 1, 1]) == (True, True)
    if encoded.truncated[0] and kept:
        assert (start, stop) == (
            (0, whole.spans[last - 1, 1]) if side == "right" else (whole.spans[first, 0], len(text))
        )


def test_the_characters_of_a_passage_are_told_without_the_words_around_it():
    text = "two " * 40
    pairs = PairTokenizer(LibraryTokenizer(tiny_tokenizer()), TEMPLATE)
    expected_spans: dict[Side, tuple[int, int]] = {"right": (0, 4 * 18 - 1), "left": (160 - 4 * 18, 160)}
    for side, expected in expected_spans.items():
        rules = Rules(max_length=24, truncation_side=side, passage_instruction="four ", query_max_length=1)
        encoded = pairs.encode([("one", text)], rules, wants_spans=True)
        assert encoded.row(0)[4:-1].tolist() == [FOUR, *[TWO] * 18]
        assert tuple(encoded.spans[0]) == expected


def test_a_ten_megabyte_passage_is_one_truncated_row():
    encoded = encode([("one", "two " * 2_500_000)], max_length=64)
    assert encoded.lengths.tolist() == [64]
    assert encoded.truncated.tolist() == [True]


def test_a_long_passage_becomes_overlapping_chunks_that_cover_it():
    passage = " ".join(["one", "two", "three"] * 20)
    encoded = encode([("four", passage), ("four", "one")], max_length=20, long_documents="chunk")
    covered = {i for start, stop in encoded.spans[:-1] for i in range(start, stop)}
    assert covered >= {i for i, character in enumerate(passage) if character != " "}
    assert (encoded.lengths[:-1] == 20).all()
    assert encoded.pair_of_row.tolist() == [0] * (encoded.n_rows - 1) + [1]
    assert not encoded.truncated.any()


@given(n_tokens=st.integers(0, 500), size=st.integers(1, 60), overlap=st.integers(0, 59))
def test_windows_cover_everything_and_none_is_short(n_tokens: int, size: int, overlap: int):
    found = windows(n_tokens, size, overlap=min(overlap, size - 1))
    assert {i for start, stop in found for i in range(start, stop)} == set(range(n_tokens))
    assert all(stop - start == min(size, n_tokens) for start, stop in found)


def test_every_window_of_a_passage_has_the_words_around_it():
    passage = " ".join(["one", "two"] * 20)
    words = {"passage_instruction": "four", "passage_instruction_format": "{} {} three"}
    encoded = encode([("one", passage)], max_length=15, long_documents="chunk", **words)
    rows = [encoded.row(i).tolist()[4:-1] for i in range(encoded.n_rows)]
    assert encoded.n_rows > 2
    assert all((row[0], row[-1]) == (FOUR, THREE) and set(row[1:-1]) == {ONE, TWO} for row in rows)
    assert (encoded.lengths == 15).all()
    covered = {i for start, stop in encoded.spans for i in range(start, stop)}
    assert covered >= {i for i, character in enumerate(passage) if character != " "}
    assert encode([("one", "two")], long_documents="chunk", **words).row(0).tolist()[4:-1] == [FOUR, TWO, THREE]
    assert encode([("one", "")], long_documents="chunk", **words).row(0).tolist()[4:-1] == [FOUR, THREE]


def test_a_cut_from_the_left_leaves_the_words_before_a_text():
    encoded = encode(
        [("one two three", "one two one two three")],
        max_length=11,
        query_max_length=3,
        truncation_side="left",
        query_instruction="four",
        query_instruction_format="{} {}",
        passage_instruction="four four",
        passage_instruction_format="{} {}",
    )
    assert encoded.row(0).tolist() == [S, FOUR, TWO, THREE, END, END, FOUR, FOUR, TWO, THREE, END]
    assert (encoded.truncated.tolist(), encoded.query_truncated.tolist()) == ([True], [True])


def test_a_window_has_to_hold_something_of_its_passage():
    with pytest.raises(InputError, match="the 9 tokens of words around a passage leave no room for a window"):
        encode([("one", "two " * 9)], max_length=14, long_documents="chunk", passage_instruction="four " * 9)


def test_instructions_are_put_before_the_texts():
    plain = encode([("one two", "three two")])
    instructed = encode(
        [("two", "two")],
        query_instruction="one",
        query_instruction_format="{} {}",
        passage_instruction="three",
        passage_instruction_format=r"{}\n{}",
    )
    assert instructed.ids.tolist() == plain.ids.tolist()


def test_a_query_that_leaves_no_room_says_what_to_do():
    with pytest.raises(InputError, match=r"a query of 30 tokens leaves no room .*=32; lower query_max_length"):
        encode([("one " * 40, "two")], max_length=32, query_max_length=30)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_length": 65}, "max_length=65, but this model takes at most 64 tokens"),
        ({"max_length": 5}, "max_length=5 cannot hold a pair: 4 tokens of a row are special"),
        ({"max_length": 64, "query_max_length": 0}, "query_max_length=0, expected a whole number of at least 1"),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(rules: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Rules(**rules).check(TEMPLATE, longest=64)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"truncation": "longest"}, "truncation='longest', expected one of 'only_passage', 'longest_first'"),
        ({"long_documents": "split"}, "long_documents='split', expected one of 'truncate', 'chunk'"),
        ({"truncation": "longest_first", "query_max_length": 9}, "remove query_max_length"),
        ({"truncation": "longest_first", "long_documents": "chunk"}, 'needs truncation="only_passage"'),
    ],
)
def test_rules_that_contradict_each_other_are_refused(rules: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Rules(**rules)


def test_a_lone_surrogate_is_shown_where_it_is():
    with pytest.raises(InputError, match=r"lone surrogate \(U\+D800\) at character 4, .*'one '"):
        encode([("two", "one \ud800")])


@pytest.mark.parametrize(
    ("pair", "message"), [((1, "a"), "query of pair 0 is int"), (("a", None), "passage of pair 0")]
)
def test_what_is_not_text_is_refused(pair: tuple[object, object], message: str):
    with pytest.raises(InputError, match=message):
        encode([pair])  # type: ignore[list-item]


def test_nul_and_odd_characters_are_text():
    assert encode([("one\0", "\u202e two \ufffd")]).n_rows == 1


def test_a_damaged_tokenizer_file_is_an_artifact_error(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"')
    with pytest.raises(ArtifactError, match=r"tokenizer.json cannot be read as a tokenizer"):
        LibraryTokenizer.open(path)


def test_truncation_and_padding_in_the_file_are_not_used(tmp_path: Path):
    tokenizer: Tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoded = PairTokenizer(LibraryTokenizer.open(tmp_path / "tokenizer.json"), TEMPLATE).encode(
        [("one two", "three")], Rules()
    )
    assert encoded.lengths.tolist() == [7]


def test_a_template_without_prefix_or_suffix_works():
    encoded = PairTokenizer(LibraryTokenizer(tiny_tokenizer()), Template(prefix=(), separator=(2,), suffix=())).encode(
        [("one", "two")], Rules()
    )
    assert encoded.ids.tolist() == [ONE, END, TWO]
