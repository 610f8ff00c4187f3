"""Examples: a query with passages that answer it and passages that do not, perhaps with a teacher's scores.

Three layouts are read, as JSON Lines, CSV, TSV, Parquet or Arrow. FlagEmbedding's has an example a line:

    {"query": "...", "pos": ["..."], "neg": ["..."], "prompt": "...", "pos_scores": [8.1], "neg_scores": [-2.5]}

Labelled pairs and triplets have one of an example's passages a line, and perhaps scores:

    {"query": "...", "passage": "...", "label": 1, "score": 8.1}
    {"query": "...", "positive": "...", "negative": "..."}

Lines that follow each other with the same query are one example. Files are read as a stream, and each error names the
file and the line. Only FlagEmbedding's layout is written.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rankrt.cli.bulk.columns import column_format_of, read_rows
from rankrt.cli.inputs import Place, Record, format_of, lines, open_input, records
from rankrt.errors import InputError
from rankrt_finetune.data.queries import digest

# The names that data sets use for the texts of labelled pairs and of triplets.
_PASSAGES = ("passage", "document", "text")
_POSITIVES, _NEGATIVES = ("positive", "pos"), ("negative", "neg")
_QUERIES = ("query", "anchor")
_WORDS = {"true": 1, "false": 0}  # labels as some write them into CSV
_EXPECTED = (
    '{"query": str, "pos": [str], "neg": [str]}, {"query": str, "passage": str, "label": 0 or 1} or'
    ' {"query": str, "positive": str, "negative": str}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A query and its passages.

    pos, neg                 passages that answer the query, at least one, and passages that do not
    pos_scores, neg_scores   a teacher's logits for them, in the same order; None if there are none
    prompt                   what an LLM reranker is asked with this query, in the place of its own question
    fields                   other keys of the line, such as an id; they are written again
    place                    the line that it begins at
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    place: Place

    @property
    def passages(self) -> tuple[str, ...]:
        """All passages, those that answer the query first."""
        return self.pos + self.neg

    @property
    def labels(self) -> tuple[int, ...]:
        """1 for each passage that answers the query, 0 for each other, in the order of `passages`."""
        return (1,) * len(self.pos) + (0,) * len(self.neg)

    @property
    def scores(self) -> tuple[float, ...] | None:
        """The teacher's logits in the order of `passages`; None unless all passages have one."""
        if self.pos_scores is None or (self.neg and self.neg_scores is None):
            return None
        return self.pos_scores + (self.neg_scores or ())

    def with_scores(self, scores: Sequence[float]) -> "Example":
        """Return the example with these scores of its passages."""
        n_pos = len(self.pos)
        return replace(self, pos_scores=tuple(scores[:n_pos]), neg_scores=tuple(scores[n_pos:]))

    def line(self) -> str:
        """Return the example as a line of JSON, without the line's end."""
        content: dict[str, Any] = {"query": self.query, "pos": self.pos, "neg": self.neg}
        for key in ("pos_scores", "neg_scores", "prompt"):
            if (value := getattr(self, key)) is not None:
                content[key] = value
        return json.dumps(content | dict(self.fields), ensure_ascii=False)


def read_examples(path: Path | str) -> Iterator[Example]:
    """Yield the examples of a file as it is read.

    Raises InputError, with the file and the line, for what is not an example. The line of a query that comes back
    later among labelled pairs or triplets is an error, too: a stream cannot add to an example that has passed.
    """
    first_lines: dict[int, int] = {}
    for (is_part, query), run in groupby(read_lines(path), key=lambda line: (line.is_part, line.example.query)):
        if not is_part:
            yield from (_checked(line.example) for line in run)
            continue
        example = _joined([line.example for line in run])
        if (first := first_lines.setdefault(digest(query), example.place.number)) != example.place.number:
            raise InputError(
                f"{example.place}: the same query already stands at {example.place.unit} {first}. Sort the file by"
                " query, so that its lines follow each other"
            )
        yield example


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: an example, or with `is_part` some of an example's passages."""

    example: Example
    is_part: bool


def read_lines(path: Path | str) -> Iterator[Line]:
    """Yield the lines of a file as they stand: whether a query has what an example needs is not asked.

    Raises InputError, with the file and the line, for what is in none of the layouts, and for a file without lines.
    """
    is_empty = True
    for record in _records(str(path)):
        is_empty = False
        yield _read(record)
    if is_empty:
        raise InputError(f"{path} has no examples; expected lines of {_EXPECTED}")


def _records(name: str) -> Iterator[Record]:
    if (columns := column_format_of(name)) is not None:
        for index, row in enumerate(read_rows(name, columns)):
            yield Record(place=Place(file=name, unit="row", number=index + 1), index=index, content=row)
        return
    with open_input(name) as file:
        yield from records(lines(file, name), name, format_of(name) or "jsonl")


def _read(record: Record) -> Line:
    content, place = record.content, record.place
    if not isinstance(content, dict):
        raise InputError(f"{place}: expected {_EXPECTED}, got {json.dumps(content, ensure_ascii=False):.80}")
    query_key = _one_key(content, _QUERIES, place)
    query = _text(content, query_key, place)
    if isinstance(content.get("pos"), list) or ("neg" in content and isinstance(content["neg"], list)):
        return Line(example=_whole(content, query_key, query, place), is_part=False)
    if "label" in content:
        return Line(example=_pair(content, query_key, query, place), is_part=True)
    if any(key in content for key in _POSITIVES):
        return Line(example=_triplet(content, query_key, query, place), is_part=True)
    raise InputError(f"{place} has only {', '.join(content)}; expected {_EXPECTED}")


def _whole(content: Mapping[str, Any], query_key: str, query: str, place: Place) -> Example:
    pos, neg = _texts(content, "pos", place), _texts(content, "neg", place)
    prompt = content.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise InputError(f"{place}: prompt is {_shown(prompt)}, expected a text")
    example = Example(
        query=query,
        pos=pos,
        neg=neg,
        pos_scores=_scores(content, "pos_scores", pos, "pos", place),
        neg_scores=_scores(content, "neg_scores", neg, "neg", place),
        prompt=prompt,
        fields=_others(content, query_key, "pos", "neg", "pos_scores", "neg_scores", "prompt"),
        place=place,
    )
    if pos and example.pos_scores is None and example.neg_scores is not None:
        raise InputError(f"{place} has neg_scores but no pos_scores; write both, or none")
    if example.pos_scores is not None and neg and example.neg_scores is None:
        raise InputError(f"{place} has pos_scores but no neg_scores; write both, or none")
    return example


def _pair(content: Mapping[str, Any], query_key: str, query: str, place: Place) -> Example:
    key = _one_key(content, _PASSAGES, place)
    label = _number(_WORDS.get(str(content["label"]).lower(), content["label"]), "label", place)
    passage = (_text(content, key, place),)
    if label not in (0, 1):
        raise InputError(f'{place}: label is {content["label"]}, expected 0 or 1. Grades can be given as "score"')
    score = None if content.get("score") in (None, "") else (_number(content["score"], "score", place),)
    fields = _others(content, query_key, key, "label", "score")
    if label:
        return Example(query=query, pos=passage, pos_scores=score, fields=fields, place=place)
    return Example(query=query, pos=(), neg=passage, neg_scores=score, fields=fields, place=place)


def _triplet(content: Mapping[str, Any], query_key: str, query: str, place: Place) -> Example:
    pos_key, neg_key = _one_key(content, _POSITIVES, place), _one_key(content, _NEGATIVES, place)
    return Example(
        query=query,
        pos=(_text(content, pos_key, place),),
        neg=(_text(content, neg_key, place),),
        fields=_others(content, query_key, pos_key, neg_key),
        place=place,
    )


def _joined(parts: Sequence[Example]) -> Example:
    first = parts[0]
    pos = tuple(dict.fromkeys(passage for part in parts for passage in part.pos))
    neg = tuple(dict.fromkeys(passage for part in parts for passage in part.neg))
    if not pos:
        raise InputError(f"{first.place}: no line of this query has a passage that answers it (label 1)")
    scores = {
        passage: score
        for part in parts
        for passage, score in zip(part.passages, (part.pos_scores or ()) + (part.neg_scores or ()), strict=False)
    }
    if scores and len(scores) < len({*pos, *neg}):
        raise InputError(f"{first.place}: some lines of this query have a score and others do not; score all or none")
    example = _checked(replace(first, pos=pos, neg=neg, fields=first.fields if len(parts) == 1 else {}))
    return example.with_scores([scores[passage] for passage in example.passages]) if scores else example


def _checked(example: Example) -> Example:
    """Return an example that can teach. Raises InputError if nothing answers it, or what answers it is negative too."""
    if not example.pos:
        raise InputError(
            f"{example.place}: pos is empty, so nothing answers the query. Add a passage, or remove the line"
        )
    both = [index for index, passage in enumerate(example.neg) if passage in example.pos]
    if both:
        raise InputError(
            f"{example.place}: neg {both[0] + 1} is one of pos as well, so it can teach nothing. Remove it from one"
            " of them"
        )
    return example


def _one_key(content: Mapping[str, Any], keys: Sequence[str], place: Place) -> str:
    found = [key for key in keys if key in content]
    if len(found) != 1:
        what = f"{' and '.join(found)} are both there" if found else f"there is no {keys[0]}"
        raise InputError(f"{place}: {what}; expected {_EXPECTED}")
    return found[0]


def _text(content: Mapping[str, Any], key: str, place: Place) -> str:
    text = content[key]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: {key} is {_shown(text)}, expected a text that is not empty")
    return text


def _texts(content: Mapping[str, Any], key: str, place: Place) -> tuple[str, ...]:
    texts = content.get(key) or []
    if not isinstance(texts, list):
        raise InputError(f"{place}: {key} is {_shown(texts)}, expected a list of texts")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{place}: {key} {number} is {_shown(text)}, expected a text that is not empty")
    return tuple(texts)


def _scores(
    content: Mapping[str, Any], key: str, passages: Sequence[str], of: str, place: Place
) -> tuple[float, ...] | None:
    scores = content.get(key)
    if scores is None:
        return None
    if not isinstance(scores, list):
        raise InputError(f"{place}: {key} is {_shown(scores)}, expected a list of numbers")
    if len(scores) != len(passages):
        raise InputError(f"{place}: {key} has {len(scores)} numbers, but {of} has {len(passages)} passages")
    return tuple(_number(score, key, place) for score in scores)


def _number(value: object, key: str, place: Place) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{place}: {key} has {_shown(value)}, expected a number")
    return number


def _others(content: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _shown(value: object) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.80}"
