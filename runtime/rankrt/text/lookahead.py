"""The first tokens of a text that the tokenizers library would find, without giving it the whole text.

It tokenizes a head of the text and drops the tokens that more text could change. Three parts of a tokenizer decide
which these are. If one of them is unknown here, the whole text is tokenized.

1. Normaliser: the head ends at a cut (`cuts`). So its normal form is the beginning of the whole text's.
2. Pre-tokenizer: a known one goes from left to right, and looks at most one character beyond the end of a word. So all
   words of the head but the last are words of the text. The last one is the beginning of a word of the text.
3. Model: take a place in a word. If no token straddles it, the tokens up to it are those of the part before it. In BPE
   no merge crosses the border of two final tokens, so each side merges as it would alone. In Unigram the best path to a
   place is part of every best path through it. Only entries of the vocabulary that match the text around the place can
   straddle it. So the whole word has a border at the place, or where one of these entries starts. Each of these borders
   ends a part of the word. The common beginning of the tokens of all these parts begins the whole word's tokens.
"""

import re
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rankrt.arrays import Int32Array
from rankrt.text.cuts import Cuts, describe, is_local

# A head has so many characters for each wanted token. Only for a text like "!!!!" is the last number not enough: its
# first token can depend on its length.
_FACTORS = (4, 16, 64)
# A cut is searched within so many characters after the wanted place.
_REACH = 1 << 14
# Of so many places, the one with the fewest tokens around it is taken.
_TRIED_PLACES = 32
# Pre-tokenizers that end a word without looking further than the next character.
_KNOWN = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Metaspace", "ByteLevel", "Punctuation", "Digits"}
_KNOWN_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "+", "{1,3}")
}  # fmt: skip
# Contractions ('ll, 've) are words of their own. More text could make one of an apostrophe and a letter.
_CONTRACTION_CHARS = 3


class Lookahead:
    """Finds the first tokens of texts of one tokenizer. Threads may share one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self._tokenizer, self._model = tokenizer, tokenizer.model
        self._pre_tokenizer = tokenizer.pre_tokenizer
        self._normal = partial(_normal, tokenizer.normalizer)  # no method, or the vocabulary is freed by the collector
        normalized = [token.content for token in added if token.normalized]
        self._cuts = Cuts(self._normal, [token.content for token in added], normalized)
        contents = sorted({token.content for token in added if token.content}, key=len, reverse=True)
        self._ends = _ends_of_words(self._model, contents)
        self._added = re.compile("|".join(map(re.escape, contents)) or "(?!)")

    @cached_property
    def _longest(self) -> int:
        """The characters of the longest token. Long texts ask for it; a vocabulary of 30,000 takes 20 ms."""
        return max((len(piece) for piece in self._tokenizer.get_vocab(with_added_tokens=False)), default=1)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Lookahead | None":
        """Return the lookahead for a tokenizer; None if a part of it is unknown here."""
        added = tokenizer.get_added_tokens_decoder().values()
        is_known = (
            is_local(describe(tokenizer.normalizer), at_start=True)
            and _is_known(describe(tokenizer.pre_tokenizer))
            and _is_known_model(tokenizer.model)
            and not any(token.single_word for token in added)
        )
        return cls(tokenizer) if is_known else None

    def first_ids(self, text: str, n_tokens: int) -> Int32Array | None:
        """Return at least the first `n_tokens` ids of a text; None if its beginning does not decide them."""
        text = text if self._ends is None else self._ends.sub(r"\1", text)
        for factor in _FACTORS:
            n_chars = n_tokens * factor
            stop = self._cut(text[: n_chars + _REACH], n_chars)
            if stop == min(len(text), n_chars + _REACH):
                break
            ids = self._decided_ids(text[:stop])
            if len(ids) >= n_tokens:
                return np.array(ids, np.int32)
        return None

    def _cut(self, text: str, start: int) -> int:
        stop = self._cuts.next(text, start)
        while stop < len(text) and "'" in self._normal(text[stop - _CONTRACTION_CHARS : stop]):
            stop = self._cuts.next(text, stop + 1)
        return stop

    def _decided_ids(self, head: str) -> Sequence[int]:
        """Return the ids of a head that no text after it can change."""
        encoding = self._tokenizer.encode(head, add_special_tokens=False)
        ids: list[int] = encoding.ids
        words = encoding.word_ids
        if not ids:
            return []
        n_last = sum(1 for _ in takewhile(words[-1].__eq__, reversed(words)))
        before, last = ids[:-n_last], ids[-n_last:]
        word = self._last_word(head)
        if [token.id for token in self._model.tokenize(word)] != last:
            return before
        if type(self._model).__name__ == "WordPiece":
            # A word of more characters is unknown, however long.
            return ids if len(word) > self._model.max_input_chars_per_word else before
        if len(word) <= 3 * self._longest + _TRIED_PLACES:
            return before
        places = self._possible_cuts(word)
        common = _common_start([[token.id for token in self._model.tokenize(word[:place])] for place in places])
        return [*before, *common]

    def _last_word(self, head: str) -> str:
        """Return the last word of a head, normalised."""
        start = max((match.end() for match in self._added.finditer(head)), default=0)
        normal = self._normal(head[start:])
        if self._pre_tokenizer is None:
            return normal
        words = self._pre_tokenizer.pre_tokenize_str(normal)
        return str(words[-1][0]) if words else ""

    def _possible_cuts(self, word: str) -> list[int]:
        """Return places such that the tokens of every word with this beginning have a border at one of them."""
        last = len(word) - self._longest
        places = range(max(1, last - _TRIED_PLACES), last)
        return min((self._starts_around(word, place) for place in places), key=len)

    def _starts_around(self, word: str, place: int) -> list[int]:
        """Return a place, and the starts of the tokens that could straddle it."""
        starts = [place]
        for start in range(max(0, place - self._longest + 1), place):
            stops = range(place + 1, start + self._longest + 1)
            if any(self._model.token_to_id(word[start:stop]) is not None for stop in stops):
                starts.append(start)
        return starts


def _normal(normalizer: Any, text: str) -> str:
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _ends_of_words(model: Any, added: Sequence[str]) -> re.Pattern[str] | None:
    """Return a pattern for words of ASCII letters and digits that are too long for WordPiece.

    None for other models, and if an added token could begin or end inside a word.
    """
    if type(model).__name__ != "WordPiece" or any(token[0].isalnum() or token[-1].isalnum() for token in added):
        return None
    n_chars = 1 + max([model.max_input_chars_per_word, *map(len, added)])
    return re.compile(f"([0-9A-Za-z]{{{n_chars}}})[0-9A-Za-z]+")


def _common_start(found: Sequence[Sequence[int]]) -> Sequence[int]:
    shortest = min(found, key=len)
    for i, id_ in enumerate(shortest):
        if any(ids[i] != id_ for ids in found):
            return shortest[:i]
    return shortest


def _is_known(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(map(_is_known, pre_tokenizer["pretokenizers"]))
    if kind == "Split":
        pattern = pre_tokenizer["pattern"]
        return len(pattern.get("String", "  ")) == 1 or pattern.get("Regex") in _KNOWN_PATTERNS
    return kind in _KNOWN


def _is_known_model(model: Any) -> bool:
    kind = type(model).__name__
    if kind == "BPE":
        return not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
    return kind in ("Unigram", "WordPiece")
