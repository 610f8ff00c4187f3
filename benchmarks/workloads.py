"""The text that systems are measured on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

# XLM-R makes a token of 4.3 characters of English, so a passage of that many a token fills any row, and not much more
# than a row has to be tokenized.
_FILLING_CHARS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A query with passages."""

    name: str
    query: str
    passages: tuple[str, ...]
    max_length: int


def paragraphs(folder: Path, language: str, n_passages: int) -> Workload:
    """Return a question and the first paragraphs of a language, as they are: lengths of one order."""
    query, texts = _read(folder, language)
    return Workload(name=f"{n_passages} paragraphs", query=query, passages=texts[:n_passages], max_length=512)


def mixed(folder: Path, language: str, n_passages: int) -> Workload:
    """Return a question and passages of mixed length: one sentence, three sentences, a whole paragraph, in turn.

    A search index holds titles, snippets and paragraphs side by side; whoever pads pays for the longest of them.
    """
    query, texts = _read(folder, language)
    passages = tuple(_beginning(text, (1, 3, None)[i % 3]) for i, text in enumerate(texts[:n_passages]))
    return Workload(name=f"{n_passages} mixed", query=query, passages=passages, max_length=512)


def exact(folder: Path, language: str, n_tokens: int) -> Workload:
    """Return a question and one passage so long that the row has exactly that many tokens."""
    query, texts = _read(folder, language)
    passage = " ".join(texts)[: n_tokens * _FILLING_CHARS_PER_TOKEN]
    return Workload(name=f"1 x {n_tokens} tokens", query=query, passages=(passage,), max_length=n_tokens)


def _beginning(text: str, n_sentences: int | None) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s+", text)[:n_sentences])


def _read(folder: Path, language: str) -> tuple[str, tuple[str, ...]]:
    with (folder / f"candidates_{language}_top20.jsonl").open(encoding="utf-8") as file:
        query: str = json.loads(file.readline())["query"]
    lines = (folder / f"docs_{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return query, tuple(json.loads(line)["text"] for line in lines)
