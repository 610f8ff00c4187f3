"""The words that are put around a text before it is tokenized: a user's instruction, or the prompt a model learned.

Knows text only: no tokens, no model.
"""

from dataclasses import dataclass

from rankrt.artifact.manifest import Template
from rankrt.text.options import Rules, Span

_PLAIN = "{}{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An instruction and how it is joined with a text: format.format(instruction, text), where \\n is a newline."""

    instruction: str | None
    format: str

    def around(self, text: str) -> str:
        """Return the text with the words around it."""
        return text if self.instruction is None else self.format.replace("\\n", "\n").format(self.instruction, text)

    def inside(self, span: Span, text: str) -> Span:
        """Return the part of the text itself that a span of `around(text)` covers."""
        start, stop = (min(max(place - self.n_before, 0), len(text)) for place in span)
        return start, stop

    @property
    def n_before(self) -> int:
        """How many characters stand before the text."""
        return self.around("\0").index("\0")


def query_form(rules: Rules, template: Template) -> Form:
    """Return the words around a query: the rules' own, or else the model's."""
    prompt = template.prompt
    return _form(
        rules.query_instruction,
        rules.query_instruction_format,
        (prompt.query_instruction, prompt.query_format) if prompt else (None, _PLAIN),
    )


def passage_form(rules: Rules, template: Template) -> Form:
    """Return the words around a passage: the rules' own, or else the model's."""
    prompt = template.prompt
    return _form(
        rules.passage_instruction,
        rules.passage_instruction_format,
        (prompt.passage_instruction, prompt.passage_format) if prompt else (None, _PLAIN),
    )


def _form(instruction: str | None, form: str | None, default: tuple[str | None, str]) -> Form:
    return Form(
        instruction=default[0] if instruction is None else instruction, format=default[1] if form is None else form
    )
