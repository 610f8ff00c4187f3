"""Pairs with labels as people have them: one pair a line, or a query with passages that answer it and others.

A line of JSON is {"query", "passage", "label"} or {"query", "pos", "neg"}. CSV and TSV have the first three as columns.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import BoolArray, Int64Array
from rankrt.cli import inputs
from rankrt.cli.inputs import Record
from rankrt.errors import InputError
from rankrt.text.pairs import Pair

_EXPECTED = '{"query": ..., "passage": ..., "label": 0 or 1} or {"query": ..., "pos": [...], "neg": [...]}'
_LABELS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
# Five folds with two pairs of each kind: with fewer, the error that is reported would be chance.
MIN_OF_EACH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Pairs, whether each is relevant, and the number of its query; `sha256` is that of their file."""

    pairs: Sequence[Pair]
    is_relevant: BoolArray
    query_of_pair: Int64Array
    sha256: str

    @property
    def n_queries(self) -> int:
        """The number of different queries."""
        return len(np.unique(self.query_of_pair))


def read_labelled(name: str) -> Labelled:
    """Read a file of labelled pairs.

    Raises InputError, with the line, for a pair that cannot be used, and for a file that nothing can be fitted to.
    """
    with inputs.open_input(name) as file:
        numbered = inputs.lines(file, name)
        found = list(_pairs(inputs.records(numbered, name, inputs.format_of(name) or "jsonl")))
    labels = np.array([label for _, label in found], bool)
    n_relevant, n_others = int(labels.sum()), int((~labels).sum())
    if min(n_relevant, n_others) < MIN_OF_EACH:
        raise InputError(
            f"{name} has {n_relevant} relevant pairs and {n_others} others; a calibration needs {MIN_OF_EACH} of each"
            f" or more. Expected lines of {_EXPECTED}"
        )
    numbers: dict[str, int] = {}
    queries = [numbers.setdefault(query, len(numbers)) for (query, _), _ in found]
    with Path(name).open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return Labelled(
        pairs=[pair for pair, _ in found],
        is_relevant=labels,
        query_of_pair=np.array(queries, np.int64),
        sha256=sha256,
    )


def _pairs(records: Iterable[Record]) -> Iterator[tuple[Pair, bool]]:
    for record in records:
        content = record.content if isinstance(record.content, dict) else {}
        query = content.get("query")
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"{record.place} has no query with a text; expected {_EXPECTED}")
        if "passage" in content or "label" in content:
            yield (query, _text(content.get("passage"), record)), _label(content.get("label"), record)
            continue
        if not ("pos" in content or "neg" in content):
            raise InputError(f"{record.place} has no passage; expected {_EXPECTED}, got {', '.join(content)}")
        for key, label in (("pos", True), ("neg", False)):
            passages = content.get(key, [])
            if not isinstance(passages, list):
                raise InputError(f"{record.place}: {key!r} is not a list of texts; expected {_EXPECTED}")
            yield from (((query, _text(passage, record)), label) for passage in passages)


def _text(value: Any, record: Record) -> str:
    if not isinstance(value, str):
        raise InputError(f"{record.place}: a passage is {value!r:.60}, not a text; expected {_EXPECTED}")
    return value


def _label(value: Any, record: Record) -> bool:
    label = _LABELS.get(str(value).lower())
    if label is None:
        raise InputError(f"{record.place}: the label is {value!r:.60}; expected 1 for a relevant pair, or 0")
    return label
