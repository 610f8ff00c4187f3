"""XLM-R's kind of tokenizer with its vocabulary in mapped arrays: everything but the vocabulary stays the library's.

The library normalises; added tokens, words and pieces are found here, by its rules, faster and in a thirtieth of its
memory. For which tokenizer.json this holds is known here, too; all others are the library's in whole.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from tokenizers import PreTokenizedString, Token, Tokenizer

from rankrt.arrays import Int32Array
from rankrt.text_tokenizer import Located
from rankrt.unigram import Piece, Unigram, Vocabulary

_LIBRARY, _ADDED = "tokenizer.json", "added_tokens.json"
# With fewer pieces the library takes less than 60 MB; it is quicker with words that it has not seen.
MIN_PIECES = 50_000
# What Unicode calls white space and Rust splits at; Python's \s has four control characters more.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[^{_SPACES}]+")
_WORD_START = "\u2581"
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": _WORD_START, "prepend_scheme": "always", "split": True},
    ],
}


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in the text as it came; with `lstrip` it takes the spaces before it."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class _Model(msgspec.Struct, frozen=True):
    type: str
    vocab: msgspec.Raw
    unk_id: int | None = None
    byte_fallback: bool = False


class _File(msgspec.Struct, frozen=True):
    """What matters here of a tokenizer.json."""

    model: _Model
    normalizer: msgspec.Raw
    pre_tokenizer: msgspec.Raw
    added_tokens: Sequence[AddedToken]


class UnigramTokenizer:
    """Cuts texts into the pieces of a Unigram model. Threads may share one."""

    has_separate_words = True

    def __init__(self, library: Tokenizer, added_tokens: Sequence[AddedToken], vocabulary: Vocabulary) -> None:
        """Take normalisation from the library's tokenizer, whose vocabulary is not asked."""
        self._library = library
        self._normalizer, self._pre_tokenizer = library.normalizer, library.pre_tokenizer
        self._added = {token.content: token for token in added_tokens}
        longest_first = sorted(map(re.escape, self._added), key=len, reverse=True)
        self._added_pattern = re.compile("|".join(longest_first) or "(?!)")
        self._vocabulary, self._unigram = vocabulary, Unigram(vocabulary)

    @classmethod
    def read(cls, path: Path, *, min_pieces: int = MIN_PIECES) -> "UnigramTokenizer | None":
        """Read a tokenizer.json; return None for what is not of this kind, not a tokenizer, or of fewer pieces."""
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
            pieces = msgspec.json.decode(file.model.vocab, type=list[tuple[str, float]])
        except msgspec.MsgspecError:
            return None
        library, unknown = _without_vocabulary(file), file.model.unk_id
        if unknown is None or len(pieces) < min_pieces or not _is_known(file, library, pieces):
            return None
        return cls(library, file.added_tokens, Vocabulary.of(pieces, unknown))

    @classmethod
    def open(cls, folder: Path) -> "UnigramTokenizer":
        """Open what `save` wrote, with the vocabulary mapped. Raises OSError or ValueError for what is damaged."""
        added_tokens = msgspec.json.decode((folder / _ADDED).read_bytes(), type=list[AddedToken])
        return cls(Tokenizer.from_file(str(folder / _LIBRARY)), added_tokens, Vocabulary.open(folder))

    def save(self, folder: Path) -> None:
        """Write all that `open` needs into a folder."""
        self._library.save(str(folder / _LIBRARY))
        (folder / _ADDED).write_bytes(msgspec.json.encode([*self._added.values()]))
        self._vocabulary.save(folder)

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text."""
        sections = [[*self._sections(text)] for text in texts]
        words = [self._words(section) for of_text in sections for section in of_text if section.id is None]
        ids = iter(self._unigram.ids(words))
        return [_joined([next(ids) if s.id is None else np.array([s.id], np.int32) for s in ss]) for ss in sections]

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of each text with the characters they stand for."""
        return [self._located(text) for text in texts]

    def _sections(self, text: str) -> Iterator["_Section"]:
        """Yield the text between added tokens, and these, in turn."""
        done = 0
        for match in self._added_pattern.finditer(text):
            token, start = self._added[match[0]], match.start()
            if token.lstrip:
                start = done + len(text[done:start].rstrip(_SPACES))
            yield _Section(text[done:start], done)
            yield _Section(text[start : match.end()], start, token.id)
            done = match.end()
        yield _Section(text[done:] if done else text, done)

    def _words(self, section: "_Section") -> list[str]:
        normal = self._normalizer.normalize_str(section.text)
        if _WORD_START in normal:  # which begins a word wherever it stands
            return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(normal)]
        return [f"{_WORD_START}{word}" for word in _WORD.findall(normal)]

    def _located(self, text: str) -> Located:
        sections = [self._located_in(section) for section in self._sections(text)]
        return Located(_joined([s.ids for s in sections]), [span for s in sections for span in s.spans])

    def _located_in(self, section: "_Section") -> Located:
        """Locate tokens by the library's own record of what became of each character."""
        if section.id is not None:
            return Located(np.array([section.id], np.int32), [(section.start, section.start + len(section.text))])
        text = PreTokenizedString(section.text)
        text.normalize(self._normalizer.normalize)
        self._pre_tokenizer.pre_tokenize(text)
        words = [word for word, _, _ in text.get_splits()]
        pieces = dict(zip(words, self._unigram.pieces(words), strict=True)) if words else {}
        text.tokenize(lambda word: [_token(word, piece) for piece in pieces[word]])
        encoding = text.to_encoding()
        spans = [(start + section.start, stop + section.start) for start, stop in encoding.offsets]
        return Located(np.array(encoding.ids, np.int32), spans)


class _Section(NamedTuple):
    """A part of a text: itself, where it begins, and the id if it is an added token."""

    text: str
    start: int
    id: int | None = None


def _without_vocabulary(file: _File) -> Tokenizer:
    """Return the library's tokenizer with one piece in its vocabulary."""
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0]]}
    parts = {"normalizer": file.normalizer, "pre_tokenizer": file.pre_tokenizer, "model": model}
    rest: dict[str, Any] = {"version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None}
    return Tokenizer.from_str(msgspec.json.encode(rest | parts).decode())


def _is_known(file: _File, library: Tokenizer, pieces: Sequence[tuple[str, float]]) -> bool:
    """Tell whether all that this tokenizer does is done here."""
    rest: dict[str, Any] = json.loads(library.to_str())
    return (
        file.model.type == "Unigram"
        and not file.model.byte_fallback
        and max(score for _, score in pieces) <= 0
        and rest["pre_tokenizer"] == _PRE_TOKENIZER
        and rest["normalizer"] is not None
        and not any(token.single_word or token.rstrip or token.normalized for token in file.added_tokens)
    )


def _joined(ids: Sequence[Int32Array]) -> Int32Array:
    return ids[0] if len(ids) == 1 else np.concatenate(ids)


def _token(word: str, piece: Piece) -> Token:
    """Return a piece as the library has it, with its place counted in bytes."""
    start = len(word[: piece.start].encode())
    text = word[piece.start : piece.stop]
    return Token(piece.id, text, (start, start + len(text.encode())))
