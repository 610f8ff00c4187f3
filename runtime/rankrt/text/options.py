"""How two texts share a row: budgets, truncation and windows. Knows numbers of tokens, neither text nor tokenizers."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, get_args

from rankrt.artifact.manifest import Template
from rankrt.errors import InputError
from rankrt.options import check_choice, check_text, check_whole

Span: TypeAlias = tuple[int, int]
Truncation: TypeAlias = Literal["only_passage", "longest_first"]
LongDocuments: TypeAlias = Literal["truncate", "chunk"]
Side: TypeAlias = Literal["left", "right"]

# How long a row may be, in tokens, unless the caller says otherwise.
DEFAULT_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How two texts become a row of at most `max_length` tokens, special tokens included.

    truncation
        "only_passage" is FlagEmbedding's rule. It cuts the query to `query_max_length` (by default three quarters of
        `max_length`), then the passage to the rest. "longest_first" is the rule of transformers and
        sentence-transformers. It cuts the longer of the two first.
    long_documents
        "truncate" scores the part that fits. "chunk" scores overlapping windows of the passage, each with the words
        around a passage. The best window counts.
    passage_max_length
        The most tokens of a passage that are read, in all its windows together. None is as many as fit.
    truncation_side
        The side where a text loses tokens: "right" is its end. "left" is its beginning, after any instruction.
    query_instruction, passage_instruction
        Words before the text, joined by the format as in FlagEmbedding: format.format(instruction, text). The default
        is the model's own instruction, if it has one.
    instruction, prompt_name
        What the model is told to look for, if it was trained to be told; or the name of such a text in the artifact.
    question
        The question about the two texts for a prompted model. The default is the question of its training.
    """

    max_length: int = DEFAULT_LENGTH
    query_max_length: int | None = None
    passage_max_length: int | None = None
    truncation: Truncation = "only_passage"
    long_documents: LongDocuments = "truncate"
    truncation_side: Side = "right"
    query_instruction: str | None = None
    passage_instruction: str | None = None
    query_instruction_format: str | None = None
    passage_instruction_format: str | None = None
    question: str | None = None
    instruction: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that no model could honour."""
        check_whole("max_length", self.max_length)
        check_whole("query_max_length", self.query_max_length, least=1, none_is="three quarters of max_length")
        check_whole("passage_max_length", self.passage_max_length, least=1, none_is="as many as fit")
        check_choice("truncation", self.truncation, get_args(Truncation))
        check_choice("long_documents", self.long_documents, get_args(LongDocuments))
        check_choice("truncation_side", self.truncation_side, get_args(Side))
        for name in ("query_instruction", "passage_instruction", "question", "instruction", "prompt_name"):
            check_text(name, getattr(self, name), none_is="the model's own")
        for name in ("query_instruction_format", "passage_instruction_format"):
            _check_format(name, getattr(self, name))
        words = ("instruction", "prompt_name", "query_instruction", "query_instruction_format")
        given = [name for name in words if getattr(self, name) is not None]
        if len(given) > 1 and given[0] in words[:2]:
            raise InputError(f"{given[0]} and {given[1]} both say what stands around a query; give one of them")
        if self.truncation == "longest_first" and self.query_max_length is not None:
            raise InputError('truncation="longest_first" sets the length of a query itself; remove query_max_length')
        if self.truncation == "longest_first" and self.long_documents == "chunk":
            raise InputError('long_documents="chunk" needs truncation="only_passage": windows are cut from the passage')

    @property
    def n_query_tokens(self) -> int:
        """The most tokens of a query under "only_passage"."""
        return self.max_length * 3 // 4 if self.query_max_length is None else self.query_max_length

    def instruction_for(self, template: Template) -> str | None:
        """Return the instruction of these rules, None if they bring none.

        Raises InputError if the model has no place for one, or no instruction of that name.
        """
        prompt = template.prompt
        if not self.instruction and self.prompt_name is None:
            return None
        option = "instruction" if self.instruction else "prompt_name"
        if prompt is None or prompt.instructed_format is None:
            asks = prompt is not None and prompt.question is not None
            advice = "it is asked a question, which the option question replaces" if asks else "leave it out"
            raise InputError(
                f"{option} is given, but this model was trained without a place for an instruction; {advice}"
            )
        if self.instruction:
            return self.instruction
        if self.prompt_name not in prompt.instructions:
            names = ", ".join(map(repr, prompt.instructions)) or "none"
            raise InputError(
                f"prompt_name={self.prompt_name!r:.80} is not an instruction of this model, which has these: {names}"
            )
        return prompt.instructions[self.prompt_name]

    def check(self, template: Template, longest: int) -> None:
        """Raise InputError unless such rows fit a model of `longest` tokens, and can hold a pair."""
        self.instruction_for(template)
        if self.max_length > longest:
            raise InputError(f"max_length={self.max_length}, but this model takes at most {longest} tokens; lower it")
        if template.room(self.max_length) < 2:
            raise InputError(
                f"max_length={self.max_length} cannot hold a pair: {template.n_special} tokens of a row are special"
            )
        if self.query_max_length is not None and self.query_max_length > self.max_length:
            raise InputError(
                f"query_max_length={self.query_max_length} is more than max_length={self.max_length}; lower"
                " query_max_length or raise max_length"
            )
        if (n_tokens := template.room(self.max_length) + template.n_special) > longest:
            raise InputError(
                f"max_length={self.max_length} makes rows of {n_tokens} tokens with the prompt, but this model takes at"
                f" most {longest}; lower max_length or shorten the question"
            )


class RuleOptions(TypedDict, total=False):
    """The fields of `Rules` but `max_length`, as keywords of a function that hands them on."""

    query_max_length: int | None
    passage_max_length: int | None
    truncation: Truncation
    long_documents: LongDocuments
    truncation_side: Side
    query_instruction: str | None
    passage_instruction: str | None
    query_instruction_format: str | None
    passage_instruction_format: str | None
    question: str | None
    instruction: str | None
    prompt_name: str | None


def default_length(template: Template, longest: int) -> int:
    """Return the default max_length of a model of `longest` tokens: 512, or less if such rows would not fit."""
    return min(DEFAULT_LENGTH, template.max_length_within(longest))


def longest_first(n_query: int, n_passage: int, room: int) -> tuple[int, int]:
    """Return how many tokens a query and a passage keep if the longer one is cut first.

    This is tokenizers' TruncationStrategy::LongestFirst. It cuts the longer one to the room that the shorter one
    leaves, but not below the shorter. If that is not enough, both get half. The longer one gets the odd token, the
    passage if they are equal.
    """
    if n_query + n_passage <= room:
        return n_query, n_passage
    shorter, longer = sorted((n_query, n_passage))
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if n_query > n_passage else (shorter, longer)


def windows(n_tokens: int, size: int, *, overlap: int) -> list[Span]:
    """Return windows of at most `size` tokens that cover all `n_tokens`; neighbours share at least `overlap`.

    The last window ends with the text. So a window is short only if the text is.
    """
    if n_tokens <= size:
        return [(0, n_tokens)]
    starts = [*range(0, n_tokens - size, max(1, size - overlap)), n_tokens - size]
    return [(start, start + size) for start in starts]


def _check_format(name: str, form: object) -> None:
    check_text(name, form, none_is="the model's own")
    try:
        is_whole = form is None or str(form).format("", "\0").count("\0") == 1
    except (ValueError, LookupError, AttributeError):
        is_whole = False
    if not is_whole:
        raise InputError(
            f'{name}={form!r:.80}, expected {{}} for the instruction, then {{}} for the text, as in "{{}}{{}}"'
        )
