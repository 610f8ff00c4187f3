"""Where texts may be cut: no normaliser notices, and no added token is in two parts."""

import sys
from unicodedata import combining, decomposition, normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from rankrt import InputError
from rankrt.text import cuts
from rankrt.text.cuts import Cuts, is_local

# Marks, Hangul in parts, flags, joiners, what NFKC takes apart or joins, and plain text of many scripts.
ODD = [
    *"aZ9é.'\t\n\r \u3000",
    *"各\u0301\u0316\u0300가각ㄱㅏ㉠㉮ﾡￂ",
    *"🇩🇪👨👩\u200d\ufe0f🏽😀",
    *"ำกิँक्षिാൎ",
    *"ﬁ™①Ａ㌀ﷺﱞ￼\x01\xad",
]
texts = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=30)
CUTS = Cuts(lambda text: text, [])
NORMALIZERS = [
    *(getattr(normalizers, name)() for name in ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents")),
    normalizers.BertNormalizer(),
]


@given(text=texts, start=st.integers(0, 30))
def test_a_cut_is_not_noticed_by_any_normaliser(text: str, start: int):
    place = CUTS.next(text, start)
    for normalizer in NORMALIZERS:
        parts = normalizer.normalize_str(text[:place]) + normalizer.normalize_str(text[place:])
        assert parts == normalizer.normalize_str(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalize(form, text[:place]) + normalize(form, text[place:]) == normalize(form, text)


@given(text=texts, start=st.integers(0, 30))
def test_a_cut_is_between_two_graphemes(text: str, start: int):
    regex = pytest.importorskip("regex", reason="needs regex, which knows graphemes")
    place = CUTS.next(text, start)
    if (
        not "\U0001f1e6" <= text[place - 1 : place] <= "\U0001f1ff"
    ):  # flags are two letters; no normaliser looks at both
        assert regex.findall(r"\X", text[:place]) + regex.findall(r"\X", text[place:]) == regex.findall(r"\X", text)


def test_no_plain_character_composes_with_the_one_before_it():
    """What canonically composes with a character before it: second characters of compositions, and Hangul's parts."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    parts = [decomposition(character).split() for character in characters]
    seconds = {chr(int(part[1], 16)) for part in parts if len(part) == 2 and not part[0].startswith("<")}
    seconds |= {chr(code) for code in [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]}
    for character in filter(cuts._is_plain, characters):
        first = normalize("NFKD", character)[0]
        assert not combining(first), hex(ord(character))
        assert first not in seconds, hex(ord(character))


@pytest.mark.parametrize(("text", "start", "place"), [("a<s>b", 2, 4), ("ab <s>", 2, 2), ("x<S>y", 2, 4), ("ab", 1, 1)])
def test_an_added_token_is_never_in_two_parts(text: str, start: int, place: int):
    assert Cuts(str.lower, ["<s>"], ["<s>"]).next(text, start) == place


@given(text=texts, n_chars=st.integers(1, 10))
def test_pieces_are_the_text(text: str, n_chars: int):
    assert "".join(CUTS.pieces(text, n_chars)) == text


def test_a_run_of_spaces_is_one_short_piece():
    (piece,) = CUTS.pieces(" " * 10_000_000, 100)
    assert piece == " " * 64


def test_a_million_marks_are_refused_with_where_they_are():
    with pytest.raises(InputError, match=r"from character 0 on a text has 1100000 characters that each belong to"):
        [*CUTS.pieces("\u0301\u0316" * 550_000, 100)]


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, True),
        ({"type": "NFKC"}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "x"}]}, False),
        ({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, True),
        ({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}, True),
        ({"type": "Replace", "pattern": {"String": "ab"}, "content": "c"}, False),
        ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "c"}, False),
        ({"type": "Strip", "strip_left": False, "strip_right": True}, True),
        ({"type": "Strip", "strip_left": True, "strip_right": True}, False),
        ({"type": "Unheard-of"}, False),
    ],
)
def test_only_normalisers_that_are_known_are_trusted(normalizer: dict[str, object] | None, expected: bool):
    assert is_local(normalizer) is expected


def test_what_is_put_before_a_text_leaves_its_beginning_as_it_is():
    assert is_local({"type": "Prepend", "prepend": "x"}, at_start=True)
