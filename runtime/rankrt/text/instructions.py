"""The words that are put around a text before it is tokenized: a user's instruction, or the prompt a model learned.

Knows text only: no tokens, no model.
"""

from dataclasses import dataclass

from rankrt.artifact.manifest import Prompt, Template
from rankrt.text.options import Rules, Span

_PLAIN = "{}{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An instruction and how it is joined with a text: format.format(instruction, text).

    keeps_end  the words after the text stay when the text's end is cut; FlagEmbedding cuts both alike
    strips     white space around the text is removed first
    """

    instruction: str | None
    format: str
    keeps_end: bool = False
    strips: bool = False

    def around(self, text: str) -> str:
        """Return the text with the words around it."""
        text = text.strip() if self.strips else text
        return text if self.instruction is None else self.format.format(self.instruction, text)

    def inside(self, span: Span, text: str) -> Span:
        """Return the part of the text itself that a span of `around(text)` covers."""
        first, last = self.kept(text)
        start, stop = (min(max(place - self.n_before + first, 0), last) for place in span)
        return start, stop

    def kept(self, text: str) -> Span:
        """Return the part of a text that stays when white space is removed."""
        if not self.strips:
            return 0, len(text)
        start = len(text) - len(text.lstrip())
        return start, start + len(text.strip())

    @property
    def n_before(self) -> int:
        """How many characters stand before the text."""
        return self.around("\0").index("\0")

    @property
    def words_after(self) -> str:
        """The words after the text."""
        return self.around("\0").partition("\0")[2]


def query_form(rules: Rules, template: Template) -> Form:
    """Return the words around a query: with the request's instruction, the rules' own, or else the model's."""
    prompt, instruction = template.prompt, rules.instruction_for(template)
    if prompt is not None and prompt.instructed_format is not None and instruction is not None:
        return _of_model(prompt, instruction, prompt.instructed_format)
    default = None if prompt is None else _of_model(prompt, prompt.query_instruction, prompt.query_format)
    return _form(rules.query_instruction, rules.query_instruction_format, default)


def passage_form(rules: Rules, template: Template) -> Form:
    """Return the words around a passage: the rules' own, or else the model's."""
    prompt = template.prompt
    default = None if prompt is None else _of_model(prompt, prompt.passage_instruction, prompt.passage_format)
    return _form(rules.passage_instruction, rules.passage_instruction_format, default)


def _of_model(prompt: Prompt, instruction: str, form: str) -> Form:
    return Form(instruction=instruction, format=form, keeps_end=prompt.keeps_end, strips=prompt.strips)


def _form(instruction: str | None, form: str | None, default: Form | None) -> Form:
    """Return what a user gives, and of the model's what the user does not give.

    In a user's format \\n is a newline, and its words are cut with the text: both as FlagEmbedding does.
    """
    default = default or Form(instruction=None, format=_PLAIN)
    if instruction is None and form is None:
        return default
    return Form(
        instruction=default.instruction if instruction is None else instruction,
        format=default.format if form is None else form.replace("\\n", "\n"),
        keeps_end=default.keeps_end and form is None,
        strips=default.strips,
    )
