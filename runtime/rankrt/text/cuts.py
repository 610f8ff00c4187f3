"""The places where a text may be cut, so that each side is normalised independently of the other.

Knows characters, normalisers and added tokens, but neither words nor a model.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any
from unicodedata import category

from rankrt.errors import InputError

# Letters, digits, punctuation and symbols: everything that is not drawn on the previous character.
_PLAIN = {"Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "Sm", "Sc", "So"} | {f"P{kind}" for kind in "cdseifo"}
_MARKS = {"Mn", "Mc", "Me"}
# Controls that are not white space stand alone, too.
_CONTROL = re.compile("[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
# The character before a cut, and the one or two after it.
_CANDIDATE = re.compile(r"\S(?=\S| \S)")
# Long pieces are searched for runs of one character. Pieces that stay longer than the second number are refused.
_LONG_PIECE_CHARS, MOST_UNDIVIDED_CHARS = 1 << 15, 1 << 20
_RUN_CHARS = 64
# Some of these still join a neighbour: Thai's and Lao's AM, Malayalam's dot reph, and parts of Hangul. NFKC also joins
# parts of Hangul in circles or of half width.
_JOINING = re.compile(
    "[\u0e33\u0eb3\u0d4e\u1100-\u11ff\u3130-\u318f\u3200-\u321e\u3260-\u327f\ua960-\ua97f\ud7b0-\ud7ff\uffa0-\uffdc]"
)
# Above the first plane only ideographs and the most frequent others: emoji and the letters of flags.
_HIGH = re.compile("[\U0001f1e6-\U0001faff\U00020000-\U000323af]")
# Normalisers that look at one grapheme, or one character and its marks, at a time.
_LOCAL = {"Precompiled", "NFC", "NFD", "NFKC", "NFKD"} | {"Nmt", "Lowercase", "StripAccents", "BertNormalizer"}
# Patterns of `Replace` that match spaces only. A cut has none.
_PATTERNS_OF_SPACES = (" {2,}", r"\s+", " +")


def undivided_error() -> InputError:
    """Return the error for a text that is too long to be read whole, which takes 300 bytes a character."""
    return InputError(
        f"a text has more than {MOST_UNDIVIDED_CHARS} characters in a row that the tokenizer cannot divide (no spaces,"
        " or no character that it knows); shorten it"
    )


class Cuts:
    """The places of texts where a cut changes neither a tokenizer's normal form nor its added tokens.

    The two characters at a cut belong to two graphemes in every version of Unicode, and no normal form composes them.
    So the text's normal form is that of the two sides, concatenated. No added token contains the two characters. A cut
    has no space before it, and at most one after it.
    """

    def __init__(self, normalize: Callable[[str], str], added: Iterable[str], normalized: Iterable[str] = ()) -> None:
        """Take the contents of the added tokens; the tokenizer finds `normalized` ones in the normal form."""
        self._normalize = normalize
        forms = {*added, *(form for content in normalized for form in (content, content.lower(), normalize(content)))}
        self._joined = {before + after for form in forms for before, after in pairwise(form)}

    def next(self, text: str, start: int) -> int:
        """Return the first cut from `start` on; the end of the text if there is none."""
        for found in _CANDIDATE.finditer(text, max(start - 1, 0)):
            place = found.start() + 1
            before, after, next_ = text[place - 1], text[place], text[place + 1 : place + 2]
            if after == " ":
                is_apart = (_is_plain(before) or category(before) in _MARKS) and _is_plain(next_)
            else:
                is_apart = _is_plain(before) and _is_plain(after)
            if is_apart and not self._are_joined(before, after):
                return place
        return len(text)

    def pieces(self, text: str, n_chars: int) -> Iterator[str]:
        """Yield a text in pieces of about `n_chars` characters, without most of its long runs of spaces.

        Raises InputError for more than 1,048,576 characters without a cut, which no language has. A normaliser takes 50
        bytes for each byte of its input.
        """
        start = 0
        while start < len(text):
            stop = self.next(text, start + n_chars)
            piece = text[start:stop]
            if len(piece) > _LONG_PIECE_CHARS:
                piece = self._without_long_runs(piece)
            if len(piece) > MOST_UNDIVIDED_CHARS:
                raise InputError(
                    f"from character {start} on a text has {len(piece)} characters that each belong to the one before"
                    f" (combining marks, joiners, parts of Hangul); {MOST_UNDIVIDED_CHARS} in a row are the most"
                )
            yield piece
            start = stop

    def _without_long_runs(self, piece: str) -> str:
        """Shorten runs of a character to 64 if more of it would have the same normal form, or leave no word."""
        for character in set(piece):
            run = character * _RUN_CHARS
            if run + character in piece:
                once, twice = self._normalize(run), self._normalize(run + run)
                if once == twice or not twice.strip(" "):
                    piece = re.sub(f"({re.escape(run)}){re.escape(character)}+", r"\1", piece)
        return piece

    def _are_joined(self, before: str, after: str) -> bool:
        if not self._joined:
            return False
        pair = before + after
        forms = (pair, pair.lower(), self._normalize(pair))
        return any(start + end in self._joined for form in forms for start, end in pairwise(form))


def is_local(normalizer: Mapping[str, Any] | None, *, at_start: bool = False) -> bool:
    """Tell whether `Cuts` holds for a normaliser, as tokenizer.json describes it.

    `at_start` also allows changes at the beginning of a text, which is right for its first part only.
    """
    if normalizer is None:
        return True
    kind = normalizer["type"]
    if kind == "Sequence":
        return all(is_local(part, at_start=at_start) for part in normalizer["normalizers"])
    if kind == "Replace":
        pattern = normalizer["pattern"]
        return len(pattern.get("String", "  ")) == 1 or pattern.get("Regex") in _PATTERNS_OF_SPACES
    if kind == "Strip":  # no space stands before a cut
        return at_start or not normalizer["strip_left"]
    return kind in _LOCAL or (at_start and kind == "Prepend")


def describe(component: Any) -> dict[str, Any] | None:
    """Return tokenizer.json's description of a normaliser or pre-tokenizer of the tokenizers library."""
    return None if component is None else dict(json.loads(component.__getstate__()))


@lru_cache(maxsize=4096)
def _is_plain(character: str) -> bool:
    is_known = character < "\U00010000" or _HIGH.match(character) is not None
    is_plain = category(character) in _PLAIN if character else False
    return (is_known and is_plain and not _JOINING.match(character)) or _CONTROL.match(character) is not None
