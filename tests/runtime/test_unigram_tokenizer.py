"""The tokenizer over mapped arrays gives what the library gives: ids, places, for any text."""

import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rankrt import InputError, Reranker
from rankrt.files.cache import HostCache
from rankrt.text.tokenizers import LibraryTokenizer
from rankrt.text.unigram import UnigramTokenizer
from rankrt.text.unigram_model import LongWord, Unigram, Vocabulary
from tests.support import tiny_artifact

# Equal sums (ab + c and a + bc), pieces inside of pieces, a piece that looks like an added token, and no piece for "x".
PIECES = [
    *[(special, 0.0) for special in ("<s>", "<pad>", "</s>", "<unk>")],
    *[("▁", -1.0), ("a", -3.0), ("b", -3.0), ("c", -3.0), ("ab", -4.0), ("bc", -4.0), ("abc", -8.0)],
    *[
        ("▁a", -2.5),
        ("▁abcabc", -9.0),
        ("é", -6.0),
        ("ﬁ", -6.0),
        ("水", -5.0),
        ("水水", -7.5),
        ("<", -6.0),
        (">", -6.0),
    ],
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
texts = st.text(st.sampled_from([*"abcxé水<>s▁ \t\n", "\u3000", "\x1c", "\x85", "\u0301", "ﬁ"]), max_size=40)
with_special = st.lists(st.sampled_from([*SPECIAL, "<mask>", " ", "  ", "ab", "▁"]), max_size=8).map("".join)


def description(**changes: Any) -> dict[str, Any]:
    """Describe a tokenizer as XLM-R's tokenizer.json does."""
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": token == "<mask>", "rstrip": False}
        | {"normalized": False, "special": True}
        for i, token in [*enumerate(SPECIAL), (len(PIECES), "<mask>")]
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [*PIECES, ("<mask>", 0.0)], "byte_fallback": False},
    } | changes


def both(folder: Path, **changes: Any) -> tuple[UnigramTokenizer | None, LibraryTokenizer]:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(description(**changes)))
    return UnigramTokenizer.read(path, min_pieces=1), LibraryTokenizer.open(path)


LIBRARY = LibraryTokenizer(Tokenizer.from_str(json.dumps(description())))


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> UnigramTokenizer:
    """The tokenizer after it was saved and opened again."""
    folder = tmp_path_factory.mktemp("mapped")
    read, _ = both(folder)
    assert read is not None
    read.save(folder)
    return UnigramTokenizer.open(folder)


@given(st.lists(texts | with_special | st.text(max_size=20), max_size=5))
@example(["abc abcabc", "", " ", "xx ax", "<s> a <mask>b", "\uff1cs\uff1e", "a▁b"])
def test_ids_are_the_librarys(mapped: UnigramTokenizer, many: list[str]):
    assert [ids.tolist() for ids in mapped.ids(many)] == [ids.tolist() for ids in LIBRARY.ids(many)]


@given(texts | with_special | st.text(max_size=20))
@example("é  ﬁ<mask>水")
def test_places_are_the_librarys(mapped: UnigramTokenizer, text: str):
    (found,), (expected,) = mapped.located([text]), LIBRARY.located([text])
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.spans.tolist() == expected.spans.tolist()


@contextmanager
def in_small_pieces() -> Iterator[None]:
    """Let what is meant for megabytes happen in a few characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankrt.text.tokenizers._CHARS_PER_TOKEN", 1)
        patch.setattr("rankrt.text.tokenizers._PART_CHARS", 6)
        patch.setattr("rankrt.text.unigram._LONG_CHARS", 8)
        patch.setattr("rankrt.text.unigram._PIECE_CHARS", 3)
        patch.setattr("rankrt.text.cuts._LONG_PIECE_CHARS", 4)
        patch.setattr("rankrt.text.cuts._RUN_CHARS", 2)
        yield


long_texts = st.lists(texts | with_special | st.text(max_size=20), max_size=4).map("".join)


@settings(deadline=None)
@given(text=long_texts, n_tokens=st.integers(1, 20))
@example("abc" * 20, 3)
@example("a" * 60, 3)
@example("水" * 61, 2)
@example("x" * 60, 1)
@example("ab  " * 20 + "<s>" + "\u0301" * 20, 30)
def test_heads_and_tails_are_those_of_the_whole_text(mapped: UnigramTokenizer, text: str, n_tokens: int):
    whole = LIBRARY.ids([text])[0].tolist()
    with in_small_pieces():
        (head,), (tail,), (ids,) = mapped.heads([text], n_tokens), mapped.tails([text], n_tokens), mapped.ids([text])
    assert head.tolist() == whole[: len(head)]
    assert tail.tolist() == whole[len(whole) - len(tail) :]
    assert min(len(head), len(tail)) >= min(n_tokens, len(whole))
    assert ids.tolist() == whole


@settings(deadline=None)
@given(text=long_texts)
def test_places_are_the_librarys_where_a_text_is_located_in_parts(mapped: UnigramTokenizer, text: str):
    (expected,) = LIBRARY.located([text])
    with in_small_pieces():
        (found,) = mapped.located([text])
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.spans.tolist() == expected.spans.tolist()


@given(
    pieces=st.lists(st.tuples(st.text("ab", min_size=1, max_size=4), st.integers(-9, 0)), min_size=1, max_size=9),
    parts=st.lists(st.text("abx", max_size=9), max_size=9),
)
def test_a_word_in_parts_is_cut_as_in_one(pieces: list[tuple[str, int]], parts: list[str]):
    model = Unigram(Vocabulary.of([("?", -1.0), *((piece, float(score)) for piece, score in pieces)], 0))
    word, found = LongWord(model), []
    for part in parts:
        found += word.add(part)
    assert [*found, *word.finish()] == model.pieces(["".join(parts)])[0]


def test_what_is_not_decided_of_a_long_word_is_short(mapped: UnigramTokenizer):
    word = LongWord(mapped._unigram)
    text = "".join(random.Random(1).choices("abc水", k=20_000))
    found = [piece for i in range(0, len(text), 100) for piece in word.add(text[i : i + 100])]
    assert found[-1].stop > len(text) - 1000  # what is undecided doubles before it is looked at


def test_a_word_whose_first_piece_depends_on_its_length_is_refused_when_it_is_too_long(mapped: UnigramTokenizer):
    odd, even = (mapped.ids(["水" * n])[0][:3].tolist() for n in (20_001, 20_000))
    assert odd != even
    with pytest.raises(InputError, match="a text repeats itself for more than 1048576 characters without a space"):
        mapped.heads(["水" * 1_100_000], 5)


@pytest.mark.parametrize(
    "text",
    [
        *("abc" * 300_000, " " * 3_000_000, "abc " * 300_000),
        *("".join(random.Random(1).choices(alphabet, k=1_000_000)) for alphabet in ("ab水", "a水水", "+/aBc9")),
    ],
)
def test_a_text_of_megabytes_is_read_as_far_as_a_row_needs(mapped: UnigramTokenizer, text: str):
    tracemalloc.start()
    started = time.process_time()
    (ids,) = mapped.heads([text], 100)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) >= 100 or not text.strip()
    assert peak < 4 << 20
    assert seconds < 4.0  # with tracing; all of it takes 10 s and more


def test_a_word_is_cut_alike_when_it_is_met_again_and_when_memory_is_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rankrt.text.unigram_model._MAX_REMEMBERED_WORDS", 2)
    model = Unigram(Vocabulary.of(PIECES, 3))
    first = [model.ids([[word]])[0].tolist() for word in ("abc", "ax", "cab", "abc")]
    assert first == [ids.tolist() for ids in model.ids([["abc"], ["ax"], ["cab"], ["abc"]])]


def test_a_word_longer_than_a_block_is_cut_in_one(monkeypatch: pytest.MonkeyPatch):
    model, word = Unigram(Vocabulary.of(PIECES, 3)), "abcxab水水水" * 5
    whole = model.pieces([word])
    monkeypatch.setattr("rankrt.text.unigram_model._BLOCK_CHARS", 4)
    assert model.pieces([word]) == whole
    assert "".join(word[piece.start : piece.stop] for piece in whole[0]) == word


@pytest.mark.parametrize(
    "changes",
    [
        {"model": description()["model"] | {"byte_fallback": True}},
        {"model": description()["model"] | {"unk_id": None}},
        {"model": description()["model"] | {"vocab": [("<unk>", 0.0), ("a", 2.0)], "unk_id": 0}},
        {"model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}, "added_tokens": []},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": None},
        {"normalizer": None},
        {"added_tokens": [description()["added_tokens"][0] | {"rstrip": True}]},
    ],
)
def test_any_other_kind_of_tokenizer_is_left_to_the_library(tmp_path: Path, changes: dict[str, Any]):
    assert both(tmp_path, **changes)[0] is None


def large_artifact(folder: Path) -> Path:
    """Write an artifact whose tokenizer has enough pieces to be mapped."""
    more = [(f"{i:05}", -10.0) for i in range(60_000)]
    model = description()["model"] | {"vocab": [*PIECES, ("<mask>", 0.0), *more]}
    tiny_artifact(folder, tokenizer=Tokenizer.from_str(json.dumps(description(model=model))))
    return folder


def test_a_large_vocabulary_is_mapped_from_the_cache_and_scores_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    folder, pairs = large_artifact(tmp_path / "artifact"), [("a", "ab"), ("b", "<s> abc")]
    with Reranker.load(folder) as first, Reranker.load(folder) as again, Reranker.load(folder, prepare=False) as plain:
        assert first.encode(pairs).ids.tolist() == again.encode(pairs).ids.tolist() == plain.encode(pairs).ids.tolist()
    assert "vocabulary" in [item.variant for item in HostCache().items()]


@pytest.mark.parametrize("name", ["edges.npy", "pieces.npy", "scores.npy", "tokenizer.json", "added_tokens.json"])
def test_a_vocabulary_with_holes_is_made_again_and_scores_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    folder, pairs = large_artifact(tmp_path / "artifact"), [("a", "ab"), ("b", "<s> abc")]
    with Reranker.load(folder) as reranker:
        ids = reranker.encode(pairs).ids.tolist()
    (file,) = (tmp_path / "cache" / "prepared").rglob(name)
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] + b"\0" * (len(content) - half))
    with Reranker.load(folder) as reranker:
        assert reranker.encode(pairs).ids.tolist() == ids
    assert f"{name} has other bytes than were written" in caplog.text
    assert file.read_bytes() == content
