"""Queries with passages to verify on, in FlagEmbedding's fine-tuning format.

One JSON object a line: {"query": str, "pos": [str], "neg": [str]}; `prompt` and scores are allowed and not used.
"""

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec

from rankrt.text.pairs import Pair
from rankrt_export.errors import TextError

_EXPECTED = '{"query": str, "pos": [str], "neg": [str]}'


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A query with passages that answer it and passages that do not."""

    query: str
    pos: tuple[str, ...] = ()
    neg: tuple[str, ...] = ()
    prompt: str | None = None
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None

    @property
    def passages(self) -> tuple[str, ...]:
        """All passages, the answers first."""
        return self.pos + self.neg

    def first(self, n: int) -> "Question":
        """Return the question with its first n passages only."""
        return Question(query=self.query, pos=self.pos[:n], neg=self.neg[: max(0, n - len(self.pos))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Questions, and the SHA-256 of the file they came from."""

    questions: Sequence[Question]
    sha256: str

    @property
    def pairs(self) -> list[Pair]:
        """All (query, passage) pairs, question by question."""
        return [(question.query, passage) for question in self.questions for passage in question.passages]

    def __add__(self, other: "Texts") -> "Texts":
        both = hashlib.sha256((self.sha256 + other.sha256).encode()).hexdigest()
        return Texts(questions=[*self.questions, *other.questions], sha256=both)


def sample() -> Texts:
    """Return the sample that comes with rankrt and was written for it: 13 languages, rows of 5 to over 1,024 tokens."""
    return parse(files("rankrt_export.text").joinpath("sample.jsonl").read_bytes(), "sample.jsonl")


def read_texts(path: Path) -> Texts:
    """Read a file of questions. Raises TextError, with the line, if it is not one."""
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}") from error


def parse(content: bytes, name: str) -> Texts:
    """Decode lines of JSON; `name` is for messages. A byte order mark at the beginning is skipped."""
    lines = [(n, line) for n, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1) if line.strip()]
    questions = [_question(line, f"{name}, line {number}") for number, line in lines]
    if not questions:
        raise TextError(f"{name} has no text; expected lines of {_EXPECTED}")
    return Texts(questions=questions, sha256=hashlib.sha256(content).hexdigest())


def _question(line: bytes, place: str) -> Question:
    try:
        question = msgspec.json.decode(line.decode(), type=Question)
    except UnicodeDecodeError as error:
        raise TextError(f"{place} is not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise TextError(f"{place}: {error}; expected {_EXPECTED}") from error
    if not question.query.strip() or not question.passages:
        raise TextError(f"{place}: an empty query, or no passage in pos and neg")
    return question
