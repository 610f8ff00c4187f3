"""A way of asking that a user writes down: a TOML file with the words of a row and its answers.

text = "<|im_start|>user\\nquery: {query}\\ndocument: {document}\\nRelevant?<|im_end|>\\n<|im_start|>assistant\\n"
instructed = "... {instruction} ... {query} ... {document} ..."     the same with an instruction; may be left out
answers = ["yes", "no"]                                             none for a model with a head of its own
"""

import string
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from rankrt_export.decoders.wordings import INSTRUCTION, Whole, Wording
from rankrt_export.errors import OptionsError


class _Content(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    text: str
    instructed: str | None = None
    answers: Annotated[list[str | int], Meta(max_length=2)] = []
    strips: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The words of a row, and the tokens whose logits are the score: the first one's, less the second one's."""

    path: Path
    whole: Whole
    answers: tuple[str | int, ...]


def read_prompt_file(path: Path) -> PromptFile:
    """Read a file of --prompt-file. Raises OptionsError, with the field, for one that says something else."""
    try:
        content = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Content)
    except OSError as error:
        raise OptionsError(f"--prompt-file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionsError(f"--prompt-file {path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise OptionsError(f"--prompt-file {path} cannot be used: {error}") from error
    plain, passage_first = _wording(path, "text", content.text)
    instructed = None
    if content.instructed is not None:
        instructed, is_other = _wording(path, "instructed", content.instructed, "instruction")
        if is_other != passage_first:
            raise OptionsError(f"--prompt-file {path}: text and instructed have query and document in another order")
    whole = Whole(plain=plain, instructed=instructed, passage_first=passage_first, strips=content.strips)
    return PromptFile(path=path, whole=whole, answers=tuple(content.answers))


def _wording(path: Path, field: str, text: str, *others: str) -> tuple[Wording, bool]:
    """Return the words around {query} and {document}, and whether the document comes first."""
    expected = ["query", "document", *others]
    parts, names = [""], []
    try:
        for words, name, form, conversion in string.Formatter().parse(text):
            if form or conversion:
                raise ValueError(f"{name} has a format of its own")
            parts[-1] += words
            if name == "instruction" and name in expected:
                parts[-1] += INSTRUCTION
                names.append(name)
            elif name is not None:
                parts.append("")
                names.append(name)
    except ValueError as error:
        raise OptionsError(f"--prompt-file {path}: {field} is not a format: {error}") from error
    if sorted(names) != sorted(expected):
        wanted = ", ".join(f"{{{name}}}" for name in expected)
        raise OptionsError(
            f"--prompt-file {path}: {field} needs {wanted}, each once, and it has"
            f" {', '.join(f'{{{name}}}' for name in names) or 'none of them'}. A brace is written {{{{ or }}}}"
        )
    return Wording(before=parts[0], between=parts[1], after=parts[2]), names.index("document") < names.index("query")
