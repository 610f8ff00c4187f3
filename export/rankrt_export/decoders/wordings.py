"""A row as one text, and where it can be cut so that its pieces have the tokens of the whole.

rankrt tokenizes a query once for all its passages, so a row is tokenized in pieces. A place between two fixed words is
safe beside a special token. It is safe after the end of a line, too, if no token crosses one. That pieces
and whole have the same tokens is then tried with texts that begin and end in many ways. Knows no checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from rankrt.artifact.manifest import Prompt
from rankrt.text.instructions import Form
from rankrt.text.pairs import Pair
from rankrt_export.decoders.styles import Style
from rankrt_export.errors import CheckpointError

# Where an instruction stands in a wording: a private character, which no prompt contains.
INSTRUCTION = "\ue000"
# How texts begin and end decides whether a token crosses: white space, line ends, punctuation, digits, other scripts.
PROBES: Sequence[Pair] = (
    ("who is it?", "it is me"),
    (" who\nis it ", " a passage\n\nof two "),
    ("end.\n", "\nbegin"),
    ("a line's end\n\n", "\n\n- item\n- item\n\n"),
    ("tab\t", "\t tab"),
    ("12", "3.14)"),
    ("Was ist das?!", "„Ja“ …"),
    ("这是什么", "一只熊猫。"),
    ("ما هذا", "هذا باندا."),
    ("🐼", "🐼\r\n"),
    ("", "x"),
    ("'s", "<b>{it}</b>"),
)
_LINE_ENDS = "\nĊ"  # as it is, and as byte-level vocabularies write it


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The fixed words of a row, before, between and after its two texts."""

    before: str
    between: str
    after: str

    def text(self, first: str, second: str, instruction: str = "") -> str:
        """Return the row of two texts."""
        words = (part.replace(INSTRUCTION, instruction) for part in (self.before, self.between, self.after))
        before, between, after = words
        return before + first + between + second + after


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Rows as texts: without an instruction, and with one where there is a place for it.

    passage_first  the passage comes before the query
    strips         white space around the texts is removed first
    """

    plain: Wording
    instructed: Wording | None = None
    passage_first: bool = False
    strips: bool = False

    def text(self, pair: Pair, instruction: str | None = None) -> str:
        """Return a pair's row."""
        query, passage = (text.strip() for text in pair) if self.strips else pair
        texts = (passage, query) if self.passage_first else (query, passage)
        wording = self.plain if instruction is None or self.instructed is None else self.instructed
        return wording.text(*texts, instruction or "")


def taken_apart(whole: Whole, tokenizer: Tokenizer, where: str) -> Style:
    """Return the style whose pieces have the tokens of the whole text; `where` is for messages.

    Raises CheckpointError if there is no such place between the two texts.
    """
    whole = _with_apart_instruction(whole)
    plain, other = whole.plain, whole.instructed or whole.plain
    places = _Places(tokenizer)
    start = max(places.of(_common_start(plain.before, other.before)), default=0)
    # The words around a passage are the same with an instruction and without one; so they are before its own text in
    # what the ends of both have in common, or after it in what the beginnings have in common.
    common = (
        _common_start(plain.between, other.between)
        if whole.passage_first
        else _common_end(plain.between, other.between)
    )
    if not (found := places.of(common)):
        raise CheckpointError(
            f"{where} puts {plain.between!r:.200} between the two texts. Tokens can cross it, so query and passage"
            " cannot be tokenized apart, as rankrt does. Write them on two lines"
        )
    ending = _common_end(plain.after, other.after)
    n_suffix = len(ending) - min(places.of(ending), default=len(ending))
    (first, second), (first_other, second_other) = (
        _formats(
            wording,
            start,
            max(found) if whole.passage_first else len(wording.between) - len(common) + max(found),
            len(wording.after) - n_suffix,
        )
        for wording in (plain, other)
    )
    query, passage, instructed = (second, first, second_other) if whole.passage_first else (first, second, first_other)
    style = Style(
        prompt=Prompt(
            query_instruction="",
            query_format=query,
            passage_instruction="",
            passage_format=passage,
            question=None,
            instructed_format=instructed if whole.instructed else None,
            keeps_end=True,
            strips=whole.strips,
        ),
        prefix=plain.before[:start],
        suffix=(ending[len(ending) - n_suffix :],),
        passage_first=whole.passage_first,
    )
    _check(whole, style, tokenizer, where)
    return style


def _common_start(one: str, other: str) -> str:
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:n]


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _with_apart_instruction(whole: Whole) -> Whole:
    """Return the same without an instruction that stands among the words of the passage, where no request's may go."""
    plain, other = whole.plain, whole.instructed
    if other is None:
        return whole
    of_passage = (plain.before, other.before) if whole.passage_first else (plain.after, other.after)
    return whole if of_passage[0] == of_passage[1] else replace(whole, instructed=None)


def _formats(wording: Wording, start: int, middle: int, stop: int) -> tuple[str, str]:
    """Return the formats of the first and the second text, of words that are cut at a place in each of their parts."""
    return (
        _format(wording.before[start:], wording.between[:middle]),
        _format(wording.between[middle:], wording.after[:stop]),
    )


def _format(before: str, after: str) -> str:
    escaped = (words.replace("{", "{{").replace("}", "}}").replace(INSTRUCTION, "{0}") for words in (before, after))
    return "{1}".join(escaped)


class _Places:
    """Finds places in fixed words that no token of a vocabulary crosses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = tuple(
            token.content for token in added if not (token.lstrip or token.rstrip or token.single_word)
        )
        self._after_line_ends = {
            token[i + 1]
            for token in tokenizer.get_vocab(with_added_tokens=False)
            for i in range(len(token) - 1)
            if token[i] in _LINE_ENDS
        }

    def of(self, words: str) -> list[int]:
        """Return the places in fixed words, whatever stands around these."""
        return [i for i in range(len(words) + 1) if self._is_safe(words[:i], words[i:])]

    def _is_safe(self, before: str, after: str) -> bool:
        if before.endswith(self._special) or after.startswith(self._special):
            return True
        is_word = "!" <= after[:1] <= "~"
        return before.endswith("\n") and is_word and after[0] not in self._after_line_ends


def _check(whole: Whole, style: Style, tokenizer: Tokenizer, where: str) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    forms: dict[str | None, Form] = {None: style.query_form}
    if (instructed := style.prompt.instructed_format) is not None:
        forms["Find the law"] = replace(style.query_form, instruction="Find the law", format=instructed)
    for pair in PROBES:
        for instruction, form in forms.items():
            texts = [form.around(pair[0]), style.passage_form.around(pair[1])]
            pieces = [style.prefix, *texts[:: -1 if style.passage_first else 1], *style.suffix]
            if [id_ for piece in pieces for id_ in ids(piece)] != ids(whole.text(pair, instruction)):
                raise CheckpointError(
                    f"{where} makes other tokens of {whole.text(pair, instruction)!r:.300} as a whole than in pieces,"
                    " with this tokenizer. rankrt tokenizes query and passage apart, so it cannot ask this model"
                )
