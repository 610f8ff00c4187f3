"""From single texts to token ids. `pairs` knows how texts make a row."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from rankrt.arrays import Int32Array, Int64Array
from rankrt.errors import ArtifactError
from rankrt.text.cuts import MOST_UNDIVIDED_CHARS, undivided_error
from rankrt.text.lookahead import Lookahead

# The first try takes so many characters for each token. They held 512 tokens in all of XQuAD's 12 languages. Without
# this, a 10 MB passage took 7 s for 512 tokens.
_CHARS_PER_TOKEN = 8
# A space is searched within so many characters after the wanted place.
_REACH = 4096
# The library takes some 300 bytes for each character that it works on. Longer texts are tokenized in parts.
_PART_CHARS = 1 << 16
# A space between two letters or digits. A combining mark after the space would join it to one grapheme.
_SPACE = re.compile(r"(?<=[^\W_]) (?=[^\W_])")


@dataclass(frozen=True, slots=True)
class Located:
    """The ids of a text, and the first and last + 1 character of each token, shape (n_tokens, 2)."""

    ids: Int32Array
    spans: Int64Array

    @classmethod
    def joined(cls, parts: "Sequence[Located]", starts: Sequence[int]) -> "Located":
        """Return the tokens of a text whose parts begin at these characters."""
        spans = [part.spans + start for part, start in zip(parts, starts, strict=True)]
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
            np.concatenate([np.zeros((0, 2), np.int64), *spans]),
        )


class TextTokenizer(Protocol):
    """Cuts texts into tokens, without special ones. Threads may share one.

    For text with a lone surrogate the methods raise TypeError or UnicodeEncodeError.
    """

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text."""
        ...

    def heads(self, texts: Sequence[str], n_tokens: int) -> list[Int32Array]:
        """Return the ids of each text; if there are more than `n_tokens`, the first ones, at least so many."""
        ...

    def tails(self, texts: Sequence[str], n_tokens: int) -> list[Int32Array]:
        """Return the ids of each text; if there are more than `n_tokens`, the last ones, at least so many."""
        ...

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of each text with the characters they stand for, which takes longer."""
        ...


class LibraryTokenizer:
    """The tokenizers library's own: any kind of tokenizer, its vocabulary in the memory of each process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._splits_at_spaces = _splits_at_spaces(tokenizer)
        self._lookahead = Lookahead.of(tokenizer)

    @classmethod
    def open(cls, path: Path) -> "LibraryTokenizer":
        """Read a tokenizer.json. Raises ArtifactError if it is not one."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise ArtifactError(f"{path} cannot be read as a tokenizer: {error}") from error

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text."""
        short = [text for text in texts if len(text) <= _PART_CHARS]
        if len(short) == 1:  # a batch goes to other threads: 28 us for a query instead of 23, 44 on a busy host
            encodings = iter([self._tokenizer.encode(short[0], add_special_tokens=False)])
        else:
            encodings = iter(self._tokenizer.encode_batch_fast(short, add_special_tokens=False))
        return [
            np.array(next(encodings).ids, np.int32) if len(text) <= _PART_CHARS else self._ids_by_part(text)
            for text in texts
        ]

    def heads(self, texts: Sequence[str], n_tokens: int) -> list[Int32Array]:
        """Return the ids of each text; if there are more than `n_tokens`, the first ones, at least so many."""

        def head(text: str) -> Int32Array:
            ids = self._lookahead.first_ids(text, n_tokens) if self._lookahead else None
            return self._whole_ids(text) if ids is None else ids

        return try_parts(texts, n_tokens, self.ids, head_to_space if self._splits_at_spaces else head_if_short, head)

    def tails(self, texts: Sequence[str], n_tokens: int) -> list[Int32Array]:
        """Return the ids of each text; if there are more than `n_tokens`, the last ones, at least so many."""
        cut = tail_from_space if self._splits_at_spaces else head_if_short
        return try_parts(texts, n_tokens, self.ids, cut, self._whole_ids)

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of each text with the characters they stand for."""
        return [self._locate(text) for text in texts]

    def _whole_ids(self, text: str) -> Int32Array:
        """Return the ids of a text that has to be read whole. Raises InputError for a part that is too long."""
        if len(text) > MOST_UNDIVIDED_CHARS and max(len(part) for _, part in self._parts(text)) > MOST_UNDIVIDED_CHARS:
            raise undivided_error()
        return self.ids([text])[0]

    def _ids_by_part(self, text: str) -> Int32Array:
        encodings = (self._tokenizer.encode(part, add_special_tokens=False) for _, part in self._parts(text))
        return np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])

    def _locate(self, text: str) -> Located:
        starts, found = [], []
        for start, part in self._parts(text):
            encoding = self._tokenizer.encode(part, add_special_tokens=False)
            spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            starts.append(start)
            found.append(Located(np.array(encoding.ids, np.int32), spans))
        return Located.joined(found, starts)

    def _parts(self, text: str) -> Iterator[tuple[int, str]]:
        return parts_of(text, _SPACE) if self._splits_at_spaces else iter([(0, text)])


def try_parts(
    texts: Sequence[str],
    n_tokens: int,
    ids: Callable[[Sequence[str]], list[Int32Array]],
    cut: Callable[[str, int], str | None],
    otherwise: Callable[[str], Int32Array],
) -> list[Int32Array]:
    """Return ids of a part of each text that should hold so many tokens; if it does not, ids that surely do.

    `cut` returns that part, or None where there is none.
    """
    parts = [cut(text, n_tokens * _CHARS_PER_TOKEN) for text in texts]
    of_parts = iter(ids([part for part in parts if part is not None]))
    found = []
    for text, part in zip(texts, parts, strict=True):
        of_part = next(of_parts) if part is not None else None
        is_enough = of_part is not None and part is not None and (len(of_part) >= n_tokens or len(part) == len(text))
        found.append(of_part if of_part is not None and is_enough else otherwise(text))
    return found


def parts_of(text: str, between: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Yield a text in parts of 65,536 characters or more, each with its place. Parts begin between words."""
    start = 0
    while space := between.search(text, start + _PART_CHARS):
        yield start, text[start : space.start()]
        start = space.start()
    yield start, text[start:] if start else text


def head_if_short(text: str, n_chars: int) -> str | None:
    """Return the text if it has less than twice so many characters, else None."""
    return text if len(text) <= 2 * n_chars else None


def head_to_space(text: str, n_chars: int) -> str | None:
    """Return the text up to the first space after `n_chars` that stands between two words.

    Words on the two sides of a space are tokenized apart, so the head's tokens are the first of the whole text's.
    """
    if len(text) <= 2 * n_chars:
        return text
    space = _SPACE.search(text, n_chars, n_chars + _REACH)
    return text[: space.start()] if space else None


def tail_from_space(text: str, n_chars: int) -> str | None:
    """Return the text from a space between two words that has about `n_chars` after it."""
    if len(text) <= 2 * n_chars:
        return text
    start = max(0, len(text) - n_chars - _REACH)
    space = _SPACE.search(text, start, start + _REACH)
    return text[space.start() :] if space else None


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Tell whether the texts before and after a space are tokenized separately."""
    if any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values()):
        return False
    if tokenizer.pre_tokenizer is None or len(tokenizer.pre_tokenizer.pre_tokenize_str("a b")) < 2:
        return False
    whole, left, right = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("aa bb aa", "aa", " bb aa"))
    return bool(whole == left + right)
