"""XLM-R's kind of tokenizer, with its vocabulary in mapped arrays.

The tokenizers library normalises. Added tokens, words and pieces are found here, by the library's rules, faster and in
a thirtieth of its memory. Knows for which tokenizer.json this holds. The library reads all others.
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
from rankrt.text.cuts import Cuts, describe, is_local
from rankrt.text.tokenizers import Located, head_to_space, parts_of, tail_from_space, try_parts
from rankrt.text.unigram_model import LongWord, Piece, Unigram, Vocabulary

_LIBRARY, _ADDED = "tokenizer.json", "added_tokens.json"
# With fewer pieces the library takes less than 60 MB, and it is quicker with words that it has not seen.
MIN_PIECES = 50_000
# Unicode's white space, where Rust splits. Python's \s has four control characters more.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[^{_SPACES}]+")
_WORD_START = "\u2581"
_WORD_BREAKS = _SPACES + _WORD_START
# White space between words, which are tokenized separately. \r\n is one grapheme.
_BETWEEN_WORDS = re.compile(r"(?<!\r)[ \n\u3000](?=[^\W_])")
# A longer text is tokenized by pieces of about so many characters, so that memory does not grow with it.
_LONG_CHARS, _PIECE_CHARS = 1 << 16, 1 << 12
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": _WORD_START, "prepend_scheme": "always", "split": True},
    ],
}


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in the text before normalisation; with `lstrip` it takes the spaces before it."""

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
    """The parts of a tokenizer.json that matter here."""

    model: _Model
    normalizer: msgspec.Raw
    pre_tokenizer: msgspec.Raw
    added_tokens: Sequence[AddedToken]


class UnigramTokenizer:
    """Cuts texts into the pieces of a Unigram model. Threads may share one."""

    def __init__(self, library: Tokenizer, added_tokens: Sequence[AddedToken], vocabulary: Vocabulary) -> None:
        """Take normalisation from the library's tokenizer, and nothing of its vocabulary."""
        self._library = library
        self._normalizer, self._pre_tokenizer = library.normalizer, library.pre_tokenizer
        self._added = {token.content: token for token in added_tokens}
        longest_first = sorted(map(re.escape, self._added), key=len, reverse=True)
        self._added_pattern = re.compile("|".join(longest_first) or "(?!)")
        self._vocabulary, self._unigram = vocabulary, Unigram(vocabulary)
        cuts = Cuts(self._normalizer.normalize_str, self._added)
        self._cuts = cuts if is_local(describe(self._normalizer)) else None

    @classmethod
    def read(cls, path: Path, *, min_pieces: int = MIN_PIECES) -> "UnigramTokenizer | None":
        """Read a tokenizer.json; return None if it is not of this kind, not a tokenizer, or has fewer pieces."""
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
        """Open the files of `save`, with the vocabulary mapped. Raises OSError or ValueError if they are damaged."""
        added_tokens = msgspec.json.decode((folder / _ADDED).read_bytes(), type=list[AddedToken])
        return cls(Tokenizer.from_file(str(folder / _LIBRARY)), added_tokens, Vocabulary.open(folder))

    def save(self, folder: Path) -> None:
        """Write all that `open` needs into a folder."""
        self._library.save(str(folder / _LIBRARY))
        (folder / _ADDED).write_bytes(msgspec.json.encode([*self._added.values()]))
        self._vocabulary.save(folder)

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text."""
        short = iter(self._ids_at_once([text for text in texts if len(text) <= _LONG_CHARS]))
        return [next(short) if len(text) <= _LONG_CHARS else _join([*self._decided_ids(text)]) for text in texts]

    def heads(self, texts: Sequence[str], n_tokens: int) -> list[Int32Array]:
        """Return the ids of each text; if there are more than `n_tokens`, the first ones, at least so many."""

        def head(text: str) -> Int32Array:
            found, n_found = [], 0
            for ids in self._decided_ids(text):
                found.append(ids)
                n_found += len(ids)
                if n_found >= n_tokens:
                    break
            return _join(found)

        return try_parts(texts, n_tokens, self.ids, head_to_space, head)

    def tails(self, texts: Sequence[str], n_tokens: int) -> list[Int32Array]:
        """Return the ids of each text; if there are more than `n_tokens`, the last ones, at least so many.

        The last pieces of a word depend on its first ones, so a word is read from its beginning.
        """

        def tail(text: str) -> Int32Array:
            found = np.zeros(0, np.int32)
            for ids in self._decided_ids(text):
                found = np.concatenate([found, ids])[-n_tokens:]
            return found

        return try_parts(texts, n_tokens, self.ids, tail_from_space, tail)

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of each text with the characters they stand for."""
        return [self._locate(text) for text in texts]

    def _ids_at_once(self, texts: Sequence[str]) -> list[Int32Array]:
        sections = [[*self._sections(text)] for text in texts]
        words = [
            self._words(self._normalizer.normalize_str(section.text))
            for of_text in sections
            for section in of_text
            if section.id is None
        ]
        ids = iter(self._unigram.ids(words))
        return [_join([next(ids) if s.id is None else np.array([s.id], np.int32) for s in ss]) for ss in sections]

    def _decided_ids(self, text: str) -> Iterator[Int32Array]:
        """Yield the ids of a text as they are decided, holding a piece of it at a time."""
        if self._cuts is None:
            yield from self._ids_at_once([text])
            return
        word: LongWord | None = None  # the last piece ended in it
        for piece in self._cuts.pieces(text, _PIECE_CHARS):
            for section in self._sections(piece):
                if section.id is not None:
                    if word is not None:
                        yield _ids_of(word.finish())
                    word = None
                    yield np.array([section.id], np.int32)
                elif normal := self._normalizer.normalize_str(section.text):
                    words = self._words(normal)
                    if word is not None and normal[0] not in _WORD_BREAKS:
                        yield from _add_part(word, words.pop(0).removeprefix(_WORD_START))
                    elif word is not None:
                        yield _ids_of(word.finish())
                        word = None
                    if word is not None and (words or normal[-1] in _SPACES):
                        yield _ids_of(word.finish())
                        word = None
                    last = words.pop() if words and normal[-1] not in _SPACES else None
                    yield from self._ids_of_words(words)
                    if last is not None:
                        word = LongWord(self._unigram)
                        yield from _add_part(word, last)
        if word is not None:
            yield _ids_of(word.finish())

    def _ids_of_words(self, words: Sequence[str]) -> Iterator[Int32Array]:
        """Yield the ids of words: those of a long word in several parts, those of the others at once."""
        start = 0
        for i, word in enumerate(words):
            if len(word) > _PIECE_CHARS:
                yield self._unigram.ids([words[start:i]])[0]
                long, start = LongWord(self._unigram), i + 1
                yield from _add_part(long, word)
                yield _ids_of(long.finish())
        yield self._unigram.ids([words[start:]])[0]

    def _sections(self, text: str) -> Iterator["_Section"]:
        """Yield the added tokens and the texts between them, in order."""
        done = 0
        for match in self._added_pattern.finditer(text):
            token, start = self._added[match[0]], match.start()
            if token.lstrip:
                start = done + len(text[done:start].rstrip(_SPACES))
            yield _Section(text[done:start], done)
            yield _Section(text[start : match.end()], start, token.id)
            done = match.end()
        yield _Section(text[done:] if done else text, done)

    def _words(self, normal: str) -> list[str]:
        if _WORD_START in normal:  # it begins a word wherever it stands
            return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(normal)]
        return [f"{_WORD_START}{word}" for word in _WORD.findall(normal)]

    def _locate(self, text: str) -> Located:
        starts, found = [], []
        for start, part in parts_of(text, _BETWEEN_WORDS):
            for section in self._sections(part):
                starts.append(start + section.start)
                found.append(self._locate_in(section))
        return Located.joined(found, starts)

    def _locate_in(self, section: "_Section") -> Located:
        """Locate tokens in a section by the library's own record of how each character was normalised."""
        if section.id is not None:
            return Located(np.array([section.id], np.int32), np.array([[0, len(section.text)]]))
        text = PreTokenizedString(section.text)
        text.normalize(self._normalizer.normalize)
        self._pre_tokenizer.pre_tokenize(text)
        words = [word for word, _, _ in text.get_splits()]
        pieces = dict(zip(words, self._unigram.pieces(words), strict=True)) if words else {}
        text.tokenize(lambda word: [_token(word, piece) for piece in pieces[word]])
        encoding = text.to_encoding()
        return Located(np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2))


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
    """Tell whether this module does everything that the tokenizer does."""
    rest: dict[str, Any] = json.loads(library.to_str())
    return (
        file.model.type == "Unigram"
        and not file.model.byte_fallback
        and max(score for _, score in pieces) <= 0
        and rest["pre_tokenizer"] == _PRE_TOKENIZER
        and rest["normalizer"] is not None
        and not any(token.single_word or token.rstrip or token.normalized for token in file.added_tokens)
    )


def _join(ids: Sequence[Int32Array]) -> Int32Array:
    return ids[0] if len(ids) == 1 else np.concatenate([*ids, np.zeros(0, np.int32)])


def _add_part(word: LongWord, part: str) -> Iterator[Int32Array]:
    for start in range(0, len(part), _PIECE_CHARS):
        yield _ids_of(word.add(part[start : start + _PIECE_CHARS]))


def _ids_of(pieces: Sequence[Piece]) -> Int32Array:
    return np.array([piece.id for piece in pieces], np.int32)


def _token(word: str, piece: Piece) -> Token:
    """Return a piece as the library has it, with its place counted in bytes."""
    start = len(word[: piece.start].encode())
    text = word[piece.start : piece.stop]
    return Token(piece.id, text, (start, start + len(text.encode())))
