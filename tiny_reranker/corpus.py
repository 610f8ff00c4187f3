"""The questions and passages that train and measure the tiny reranker, and their split.

Knows texts, but neither tokenizer nor model. A folder of data sets holds, for each data set and language,

    <data set>/docs_<language>.jsonl              {"id", "text"} a line, one passage each
    <data set>/candidates_<language>_top20.jsonl  {"query", "cand": [passage id, ...], "label": [0 or 1, ...]} a line

with the candidates in the order of BM25 (k1 0.9, b 0.4). A relevant passage that is not among its 20 comes last.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

Part: TypeAlias = Literal["train", "dev", "held_out"]

# XQuAD: 48 articles of 5 paragraphs each, which are translations of each other in all of these languages.
XQUAD_LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
N_PARAGRAPHS_OF_ARTICLE = 5
# For training as a whole. They bring Japanese, and Chinese that was not translated.
MONOLINGUAL = (("cmrc2018", "zh"), ("jaquad", "ja"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its candidates' passage ids in BM25's order, and which passages answer it."""

    text: str
    candidates: tuple[str, ...]
    relevant: frozenset[str]

    @property
    def labels(self) -> list[int]:
        """1 for each candidate that is relevant, else 0."""
        return [int(candidate in self.relevant) for candidate in self.candidates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The passages of a data set in one language, by id and in the order of the text, and questions about them."""

    data_set: str
    language: str
    passages: Mapping[str, str]
    questions: tuple[Question, ...]


def part_of(passage_id: str) -> Part:
    """Return the part of an XQuAD paragraph. Its article decides, so that it is the same in all languages.

    Articles 0, 5, 10, ... are held out. 3, 13, 23, ... choose between settings. The others are for training.
    """
    article = int(passage_id) // N_PARAGRAPHS_OF_ARTICLE
    if article % 5 == 0:
        return "held_out"
    return "dev" if article % 10 == 3 else "train"


def training_pools(folder: Path) -> list[Pool]:
    """Read the text for training weights and pieces, without dev and held-out articles."""
    xquad = [restrict(read_pool(folder, "xquad", language), is_for_training) for language in XQUAD_LANGUAGES]
    return xquad + [read_pool(folder, data_set, language) for data_set, language in MONOLINGUAL]


def questions_of(part: Part, folder: Path) -> list[Pool]:
    """Read XQuAD with the questions of one part; the candidates are of all parts, as BM25 found them."""
    return [
        asked(read_pool(folder, "xquad", language), lambda passage_id: part_of(passage_id) == part)
        for language in XQUAD_LANGUAGES
    ]


def is_for_training(passage_id: str) -> bool:
    """Tell whether an XQuAD paragraph is for training."""
    return part_of(passage_id) == "train"


def restrict(pool: Pool, keep: Callable[[str], bool]) -> Pool:
    """Remove passages, the questions about them, and the passages from other questions' candidates."""
    questions = (
        replace(question, candidates=tuple(filter(keep, question.candidates)))
        for question in asked(pool, keep).questions
    )
    passages = {passage_id: text for passage_id, text in pool.passages.items() if keep(passage_id)}
    return replace(pool, passages=passages, questions=tuple(questions))


def asked(pool: Pool, keep: Callable[[str], bool]) -> Pool:
    """Keep every passage, and the questions whose relevant passages are all of the part."""
    return replace(pool, questions=tuple(q for q in pool.questions if all(map(keep, q.relevant))))


def read_pool(folder: Path, data_set: str, language: str) -> Pool:
    """Read one data set in one language. Raises FileNotFoundError if the folder does not have it."""
    passages = {line["id"]: line["text"] for line in _lines(folder / data_set / f"docs_{language}.jsonl")}
    questions = map(_question, _lines(folder / data_set / f"candidates_{language}_top20.jsonl"))
    return Pool(data_set=data_set, language=language, passages=passages, questions=tuple(questions))


def _question(line: Mapping[str, Any]) -> Question:
    relevant = (candidate for candidate, label in zip(line["cand"], line["label"], strict=True) if label)
    return Question(text=line["query"], candidates=tuple(line["cand"]), relevant=frozenset(relevant))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
