"""From single texts to token ids, by whatever knows the vocabulary. How texts make a row is known to `tokenizer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from rankrt.arrays import Int32Array
from rankrt.errors import ArtifactError
from rankrt.rules import Span


@dataclass(frozen=True, slots=True)
class Located:
    """The ids of a text, and of each the characters of the text that it stands for."""

    ids: Int32Array
    spans: Sequence[Span]


class TextTokenizer(Protocol):
    """Cuts texts into tokens, without special ones. Threads may share one.

    For text with a lone surrogate the methods raise TypeError or UnicodeEncodeError.
    """

    @property
    def has_separate_words(self) -> bool:
        """Whether what stands before and behind a space is tokenized apart, so that a text's head is exact."""
        ...

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text."""
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
        self.has_separate_words = _has_separate_words(tokenizer)

    @classmethod
    def open(cls, path: Path) -> "LibraryTokenizer":
        """Read a tokenizer.json. Raises ArtifactError if it is not one."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise ArtifactError(f"{path} cannot be read as a tokenizer: {error}") from error

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of each text with the characters they stand for."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [Located(np.array(encoding.ids, np.int32), encoding.offsets) for encoding in encodings]


def _has_separate_words(tokenizer: Tokenizer) -> bool:
    if any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values()):
        return False
    pre_tokenizer = tokenizer.pre_tokenizer
    return pre_tokenizer is not None and len(pre_tokenizer.pre_tokenize_str("a b")) > 1
