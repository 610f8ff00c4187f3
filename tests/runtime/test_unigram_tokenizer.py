"""The tokenizer over mapped arrays gives what the library gives: ids, places, for any text."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rankrt import ArtifactError, Reranker
from rankrt.prepared import PreparedModels
from rankrt.text_tokenizer import LibraryTokenizer
from rankrt.unigram import Unigram, Vocabulary
from rankrt.unigram_tokenizer import UnigramTokenizer
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


def test_a_word_is_cut_alike_when_it_is_met_again_and_when_memory_is_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rankrt.unigram._MAX_REMEMBERED_WORDS", 2)
    model = Unigram(Vocabulary.of(PIECES, 3))
    first = [model.ids([[word]])[0].tolist() for word in ("abc", "ax", "cab", "abc")]
    assert first == [ids.tolist() for ids in model.ids([["abc"], ["ax"], ["cab"], ["abc"]])]


def test_a_word_longer_than_a_block_is_cut_in_one(monkeypatch: pytest.MonkeyPatch):
    model, word = Unigram(Vocabulary.of(PIECES, 3)), "abcxab水水水" * 5
    whole = model.pieces([word])
    monkeypatch.setattr("rankrt.unigram._BLOCK_CHARS", 4)
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
    assert "vocabulary" in [entry.variant for entry, _ in PreparedModels().entries()]


def test_a_damaged_vocabulary_says_how_to_get_rid_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    folder = large_artifact(tmp_path / "artifact")
    Reranker.load(folder).close()
    (edges,) = (tmp_path / "cache").rglob("edges.npy")
    edges.write_bytes(b"no array")
    with pytest.raises(ArtifactError, match=r"damaged vocabulary.*rankrt cache clear"):
        Reranker.load(folder)
