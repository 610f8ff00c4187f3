"""From pairs of text to rows of token ids. `Rules` decide the cuts. Knows no models.

The two texts of a pair are tokenized separately, as Hugging Face's tokenizers do. So a query is tokenized once for all
its passages.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from rankrt.arrays import BoolArray, Int32Array, Int64Array
from rankrt.artifact.manifest import Template
from rankrt.errors import InputError
from rankrt.text.instructions import Form, passage_form, query_form
from rankrt.text.options import Rules, Span, longest_first, windows
from rankrt.text.tokenizers import Located, TextTokenizer

Pair: TypeAlias = tuple[str, str]
_Found = TypeVar("_Found")

# Windows of a long passage share a quarter of their tokens. So one of them has the whole of an answer on a border.
_CHUNK_OVERLAP = 4
# Where a passage was cut is looked for in so many characters a token, then in so many times more.
_CHARS_PER_TOKEN, _GROWTH = 8, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Rows of token ids, concatenated.

    ids             (n_tokens,) all rows
    offsets         (n_rows + 1,) row i is ids[offsets[i]:offsets[i + 1]]
    passage_starts  (n_rows,) the place of the passage in its row
    pair_of_row     (n_rows,) the pair of a row, ascending; a chunked passage has several rows
    spans           (n_rows, 2) first and last + 1 character of the passage in a row; zeros if no chunks and not asked
    truncated       (n_pairs,) whether some of the passage is in no row
    query_truncated (n_pairs,) whether some of the query is in no row
    n_suffix        how many tokens come after the passage in each row, or after the query if the passage is first
    """

    ids: Int32Array
    offsets: Int64Array
    passage_starts: Int64Array
    pair_of_row: Int64Array
    spans: Int64Array
    truncated: BoolArray
    query_truncated: BoolArray
    n_suffix: int = 0

    @classmethod
    def of_rows(
        cls, rows: Sequence[Int32Array], passage_starts: Sequence[int] | None = None, n_suffix: int = 0
    ) -> "Encoded":
        """Return rows whose ids alone are known. Each is a pair of its own, without cuts."""
        n_rows = len(rows)
        return cls(
            ids=np.concatenate(rows),
            offsets=np.cumsum([0, *map(len, rows)]),
            passage_starts=np.zeros(n_rows, np.int64) if passage_starts is None else np.array(passage_starts, np.int64),
            pair_of_row=np.arange(n_rows),
            spans=np.zeros((n_rows, 2), np.int64),
            truncated=np.zeros(n_rows, bool),
            query_truncated=np.zeros(n_rows, bool),
            n_suffix=n_suffix,
        )

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64Array:
        """The number of tokens of each row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> Int32Array:
        """Return the ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The pieces of one row before they are joined."""

    pair: int
    query: Int32Array
    passage: Int32Array
    query_truncated: bool
    truncated: bool = False
    span: Span = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worded:
    """The tokens of a text with the words around it, or one more of them than a row can hold.

    spans     the characters of each token, where they are known
    n_before  the number of tokens of the words before the text, if a cut comes between these and the text
    n_after   the number of tokens of the words after it
    end       the words after it, tokenized apart: they follow a text whose own end was cut
    """

    ids: Int32Array
    spans: Int64Array = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    n_before: int = 0
    n_after: int = 0
    end: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))

    @classmethod
    def of(cls, located: Located, form: Form, text: str, end: Int32Array) -> "Worded":
        """Tell the words around a text, which a window or a cut from the left keeps, from the text itself."""
        first, last = form.kept(text)
        start = form.n_before
        stop = start + last - first
        n_after = int((located.spans[:, 0] >= stop).sum()) if form.words_after else 0
        return cls(
            ids=located.ids,
            spans=located.spans,
            n_before=int((located.spans[:, 1] <= start).sum()) if start else 0,
            n_after=n_after,
            end=end if form.keeps_end else located.ids[len(located.ids) - n_after :],
        )

    def kept(self, n_tokens: int, rules: Rules) -> Int32Array:
        """Return what stays when so many tokens may; of the words before the text all that fit.

        Raises InputError if the words after it take them all.
        """
        if n_tokens >= len(self.ids):
            return self.ids
        if rules.truncation_side == "left":
            n_before = min(self.n_before, n_tokens)
            return np.concatenate([self.ids[:n_before], self.ids[len(self.ids) - (n_tokens - n_before) :]])
        if n_tokens <= len(self.end) and len(self.end):
            raise InputError(
                f"{n_tokens} tokens are left for a text and the {len(self.end)} tokens of the words after it; raise"
                " max_length, query_max_length or passage_max_length"
            )
        return np.concatenate([self.ids[: n_tokens - len(self.end)], self.end])


class PairTokenizer:
    """Turns pairs into rows by a template. It never changes after construction, so threads may share one."""

    def __init__(self, text_tokenizer: TextTokenizer, template: Template) -> None:
        self._text_tokenizer = text_tokenizer
        self._template = template

    def encode(
        self,
        pairs: Sequence[Pair],
        rules: Rules,
        queries: dict[str, Worded] | None = None,
        *,
        wants_spans: bool = False,
    ) -> Encoded:
        """Tokenize, cut and join pairs; rows come in the order of the pairs.

        `queries` holds those that were tokenized by these rules before, and new ones are added. With `wants_spans`, a
        passage that was cut is tokenized once more, to see where. Raises InputError for a value of another type, and
        for text with a lone surrogate.
        """
        _check_texts(pairs)
        template, queries = self.template(rules), {} if queries is None else queries
        form, room = passage_form(rules, template), template.room(rules.max_length)
        new = [query for query in dict.fromkeys(query for query, _ in pairs) if query not in queries]
        most = rules.n_query_tokens if rules.truncation == "only_passage" else room
        queries |= zip(new, self._words(new, query_form(rules, template), rules, most), strict=True)
        if rules.long_documents == "chunk":
            located = self._located([passage for _, passage in pairs], form)
            chunks = (self._chunks(i, queries[q], located[i], room, rules) for i, (q, _) in enumerate(pairs))
            rows = [replace(row, span=form.inside(row.span, pairs[row.pair][1])) for found in chunks for row in found]
        else:
            # With a question the room may exceed max_length, but the passage alone may not.
            most = rules.max_length if rules.truncation == "only_passage" else room
            passages = self._words([passage for _, passage in pairs], form, rules, most)
            if rules.truncation == "longest_first" and room % 2:
                self._find_longer(pairs, queries, passages, rules)
            rows = [self._cut(i, queries[q], passages[i], room, rules) for i, (q, _) in enumerate(pairs)]
            if wants_spans:
                spans = [self._span(row, passages[row.pair], pairs[row.pair][1], form, rules) for row in rows]
                rows = [replace(row, span=span) for row, span in zip(rows, spans, strict=True)]
        return self._join(rows, len(pairs), template)

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of single texts, without special ones, and their places. Raises InputError."""
        return _checked(self._text_tokenizer.located, texts)

    def template(self, rules: Rules) -> Template:
        """Return the template with the question of the rules. Raises InputError if it has none to replace."""
        if rules.question is None:
            return self._template
        if self._template.prompt is None or self._template.prompt.question is None:
            raise InputError("question is given, but the prompt of this model has none; remove it")
        suffix = (*self._template.separator, *self._ids([rules.question])[0].tolist())
        return msgspec.structs.replace(self._template, suffix=suffix)

    def _words(self, texts: Sequence[str], form: Form, rules: Rules, most: int) -> list[Worded]:
        """Tokenize texts with the words around them; of a long text, one token more than `most`, which shows a cut.

        A cut from the left needs to know the tokens of these words, so it takes the whole text.
        """
        if rules.truncation_side == "left" and form.instruction is not None:
            return self._located(texts, form)
        tokenizer = self._text_tokenizer
        some = tokenizer.heads if rules.truncation_side == "right" else tokenizer.tails
        found = _checked(lambda worded: some(worded, most + 1), [form.around(text) for text in texts])
        end = self._end(form)
        return [Worded(ids=ids, end=end) for ids in found]

    def _located(self, texts: Sequence[str], form: Form) -> list[Worded]:
        found, end = _checked(self._text_tokenizer.located, [form.around(text) for text in texts]), self._end(form)
        return [Worded.of(located, form, text, end) for located, text in zip(found, texts, strict=True)]

    def _end(self, form: Form) -> Int32Array:
        return self._ids([form.words_after])[0] if form.keeps_end and form.words_after else np.zeros(0, np.int32)

    def _find_longer(
        self, pairs: Sequence[Pair], queries: dict[str, Worded], passages: list[Worded], rules: Rules
    ) -> None:
        """Tokenize both texts whole if both are cut to half, because the longer one keeps the odd token."""
        template = self.template(rules)
        room, of_query, of_passage = (
            template.room(rules.max_length),
            query_form(rules, template),
            passage_form(rules, template),
        )
        for i, (query, passage) in enumerate(pairs):
            if min(len(queries[query].ids), len(passages[i].ids)) > room:
                queries[query] = replace(queries[query], ids=self._ids([of_query.around(query)])[0])
                passages[i] = replace(passages[i], ids=self._ids([of_passage.around(passage)])[0])

    def _cut(self, pair: int, query: Worded, passage: Worded, room: int, rules: Rules) -> _Row:
        n_all = len(passage.ids)
        n_wanted = n_all if rules.passage_max_length is None else min(n_all, rules.passage_max_length)
        if rules.truncation == "longest_first":
            n_query, n_passage = longest_first(len(query.ids), n_wanted, room)
        else:
            n_query = self._n_query(query, room, rules)
            n_passage = min(n_wanted, room - n_query, rules.max_length)
        return _Row(
            pair=pair,
            query=query.kept(n_query, rules),
            passage=passage.kept(n_passage, rules),
            query_truncated=n_query < len(query.ids),
            truncated=n_passage < n_all,
        )

    def _n_query(self, query: Worded, room: int, rules: Rules) -> int:
        n_query = min(len(query.ids), rules.n_query_tokens)
        if n_query >= room:
            # The reference truncates neither text here, and its row is longer than max_length.
            raise InputError(
                f"a query of {n_query} tokens leaves no room for a passage in max_length={rules.max_length};"
                " lower query_max_length or raise max_length"
            )
        return n_query

    def _span(self, row: _Row, passage: Worded, text: str, form: Form, rules: Rules) -> Span:
        """Return the characters of a passage that its row has."""
        first, last = form.kept(text)
        if not row.truncated:
            return first, last
        if rules.truncation_side == "left":
            n_kept = len(row.passage) - min(passage.n_before, len(row.passage))
            spans = passage.spans if len(passage.spans) else self._last_spans(form.around(text), row.passage)
            start = spans[len(spans) - n_kept][0] if n_kept else len(form.around(text))
            return form.inside((start, len(form.around(text))), text)[0], last
        kept = row.passage[: len(row.passage) - len(passage.end)]
        return first, form.inside((0, self._first_spans(form.around(text), kept)[-1][1] if len(kept) else 0), text)[1]

    def _first_spans(self, text: str, ids: Int32Array) -> Int64Array:
        """Return the characters of the first tokens of a text, whose ids are known, and read no more of it than needed.

        More text can change the last tokens of a part. So the part has to have more tokens than are wanted.
        """
        for n_chars in _sizes(len(text), len(ids)):
            (found,) = self.located([text[:n_chars]])
            if len(found.ids) > len(ids) and np.array_equal(found.ids[: len(ids)], ids):
                break
        return found.spans[: len(ids)]

    def _last_spans(self, text: str, ids: Int32Array) -> Int64Array:
        """Return the characters of the last tokens of a text, as `_first_spans` does for the first."""
        for n_chars in _sizes(len(text), len(ids)):
            (found,) = self.located([text[len(text) - n_chars :]])
            if len(found.ids) > len(ids) and np.array_equal(found.ids[len(found.ids) - len(ids) :], ids):
                break
        return found.spans[len(found.ids) - len(ids) :] + (len(text) - n_chars)

    def _chunks(self, pair: int, query: Worded, passage: Worded, room: int, rules: Rules) -> Iterator[_Row]:
        """Cut a passage into windows, each with the words around a passage."""
        kept = query.kept(self._n_query(query, room, rules), rules)
        n_words = passage.n_before + max(passage.n_after, len(passage.end))
        size = min(room - len(kept), rules.max_length) - n_words
        n_own = len(passage.ids) - passage.n_before - passage.n_after
        if size < 1:
            raise InputError(
                f"the query and the {n_words} tokens of words around a passage leave no room for a window of it in"
                f" max_length={rules.max_length}; raise max_length or shorten the passage instruction"
            )
        most = n_own if rules.passage_max_length is None else max(0, rules.passage_max_length - n_words)
        n_wanted = min(n_own, most)
        first = passage.n_before + (n_own - n_wanted if rules.truncation_side == "left" else 0)
        before, last = passage.ids[: passage.n_before], passage.n_before + n_own
        for start, stop in windows(n_wanted, size, overlap=size // _CHUNK_OVERLAP):
            start, stop = first + start, first + stop
            behind = passage.ids[last:] if stop == last else passage.end
            yield _Row(
                pair=pair,
                query=kept,
                passage=np.concatenate([before, passage.ids[start:stop], behind]),
                query_truncated=len(kept) < len(query.ids),
                truncated=n_wanted < n_own,
                span=(passage.spans[start][0], passage.spans[stop - 1][1]) if stop > start else (0, 0),
            )

    def _join(self, rows: Sequence[_Row], n_pairs: int, template: Template) -> Encoded:
        fixed = (template.prefix, template.separator, template.suffix)
        prefix, separator, suffix = (np.array(ids, np.int32) for ids in fixed)
        texts = [(row.passage, row.query) if template.passage_first else (row.query, row.passage) for row in rows]
        pieces = [piece for first, second in texts for piece in (prefix, first, separator, second, suffix)]
        n_pieces = np.array([len(piece) for piece in pieces], np.int64).reshape(-1, 5)
        pair_of_row = np.array([row.pair for row in rows], np.int64)
        truncated, query_truncated = np.zeros((2, n_pairs), bool)
        truncated[pair_of_row] = [row.truncated for row in rows]
        query_truncated[pair_of_row] = [row.query_truncated for row in rows]
        return Encoded(
            ids=np.concatenate([*pieces, np.zeros(0, np.int32)]),
            offsets=np.concatenate([[0], np.cumsum(n_pieces.sum(axis=1))]),
            passage_starts=n_pieces[:, : 1 if template.passage_first else 3].sum(axis=1),
            pair_of_row=pair_of_row,
            spans=np.array([row.span for row in rows], np.int64).reshape(-1, 2),
            truncated=truncated,
            query_truncated=query_truncated,
            n_suffix=len(suffix),
        )

    def _ids(self, texts: Sequence[str]) -> list[Int32Array]:
        return _checked(self._text_tokenizer.ids, texts)


def _sizes(n_chars: int, n_tokens: int) -> Iterator[int]:
    """Yield numbers of characters that may have so many tokens, growing until it is all of them."""
    size = _CHARS_PER_TOKEN * (n_tokens + 1)
    while size < n_chars:
        yield size
        size *= _GROWTH
    yield n_chars


def _checked(tokenize: Callable[[Sequence[str]], list[_Found]], texts: Sequence[str]) -> list[_Found]:
    try:
        return tokenize(texts)
    except (TypeError, UnicodeEncodeError):
        raise InputError(_describe_bad_text(texts)) from None


def _check_texts(pairs: Sequence[Pair]) -> None:
    for i, pair in enumerate(pairs):
        for role, text in zip(("query", "passage"), pair, strict=True):
            if not isinstance(text, str):
                raise InputError(f"the {role} of pair {i} is {type(text).__name__}, not str")


def _describe_bad_text(texts: Sequence[str]) -> str:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return (
                f"a text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, which no"
                f" encoding can write: {text[max(0, error.start - 20) : error.start]!r}...; decode the text correctly,"
                ' or clean it with text.encode("utf-8", "replace").decode()'
            )
    return "the tokenizer refused a text"
