"""The text that systems score: questions with passages, cut into workloads of known length.

Uses the checkpoint's tokenizer.json to count tokens, and only for that.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rankrt_export.text.texts import Question, Texts, read_texts, sample
from tiny_reranker.corpus import questions_of

# XLM-R has 4.3 characters of English a token. So a passage of so many characters a token fills any row, without much
# more text to tokenize.
_FILLING_CHARS_PER_TOKEN = 8
DEFAULT_TOKENS = 512
# The number of sentences of a passage, in turn; None is all.
KINDS: Mapping[str, tuple[int | None, ...]] = {"short": (1,), "mixed": (1, 3, None), "paragraphs": (None,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A query with passages. n_tokens counts all rows together, longest the longest row."""

    name: str
    query: str
    passages: tuple[str, ...]
    max_length: int
    n_tokens: int
    longest: int

    @property
    def size(self) -> dict[str, float]:
        """Its facts for a record."""
        return {"n_passages": len(self.passages), "n_tokens": self.n_tokens, "longest": self.longest}


class Source:
    """Text to make workloads of: the first question's query, and all passages in their order, each once."""

    def __init__(self, texts: Texts, tokenizer_file: Path) -> None:
        self.texts = texts
        self._query = texts.questions[0].query
        self._passages = tuple(dict.fromkeys(p for question in texts.questions for p in question.passages if p.strip()))
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_padding()

    def make(self, kind: str, n_passages: int) -> Workload:
        """Return a workload: "short", "mixed", "paragraphs", or a number of tokens.

        short       the first sentence of each passage
        mixed       one sentence, three sentences, the whole passage, in turn. An index has titles, snippets and
                    paragraphs, and padding costs as much as the longest of them.
        paragraphs  whole passages
        512, ...    rows of exactly that many tokens

        Raises ValueError if the text has fewer passages.
        """
        if kind.isdigit():
            return self._workload(f"{n_passages} x {kind} tokens", self._filling(int(kind), n_passages), int(kind))
        if n_passages > len(self._passages):
            raise ValueError(
                f"the text has {len(self._passages)} passages, {n_passages} are wanted: give more (--text)"
            )
        n_sentences = KINDS[kind]
        passages = [_beginning(self._passages[i], n_sentences[i % len(n_sentences)]) for i in range(n_passages)]
        return self._workload(f"{n_passages} {kind}", passages, DEFAULT_TOKENS)

    def of_question(self, question: Question) -> Workload:
        """Return a question with all its passages, the answers first."""
        return self._workload(question.query, question.passages, DEFAULT_TOKENS, question.query)

    def _filling(self, n_tokens: int, n_passages: int) -> list[str]:
        """Join passages until they are longer than a row, each time from another one on."""
        n_chars, text = n_tokens * _FILLING_CHARS_PER_TOKEN, " ".join(self._passages)
        starts = [sum(len(p) + 1 for p in self._passages[: i % len(self._passages)]) for i in range(n_passages)]
        endless = text + " " + text * (1 + n_chars // len(text))
        return [endless[start : start + n_chars] for start in starts]

    def _workload(self, name: str, passages: Sequence[str], max_length: int, query: str | None = None) -> Workload:
        query = query or self._query
        self._tokenizer.enable_truncation(max_length)
        rows = self._tokenizer.encode_batch([(query, passage) for passage in passages])
        lengths = [len(row.ids) for row in rows]
        return Workload(
            name=name,
            query=query,
            passages=tuple(passages),
            max_length=max_length,
            n_tokens=sum(lengths),
            longest=max(lengths),
        )


def read(path: Path | None) -> tuple[str, Texts]:
    """Return the name and the questions of a text.

    None is the sample that comes with rankrt. A file has lines of {"query", "pos", "neg"}. A folder has the layout of
    tiny_reranker/corpus.py, and its held-out questions are taken, English first.
    """
    if path is None:
        return "sample", sample()
    if path.is_file():
        return path.name, read_texts(path)
    pools = sorted(questions_of("held_out", path), key=lambda pool: pool.language != "en")
    questions = [
        _label(question.text, question.labels, [pool.passages[c] for c in question.candidates])
        for pool in pools
        for question in pool.questions
    ]
    content = "".join(question.query + "".join(question.passages) for question in questions)
    return "xquad", Texts(questions=questions, sha256=hashlib.sha256(content.encode()).hexdigest())


def _label(query: str, labels: Sequence[int], passages: Sequence[str]) -> Question:
    pos = tuple(passage for passage, label in zip(passages, labels, strict=True) if label)
    neg = tuple(passage for passage, label in zip(passages, labels, strict=True) if not label)
    return Question(query=query, pos=pos, neg=neg)


def _beginning(text: str, n_sentences: int | None) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s+", text)[:n_sentences])
