"""Pairs with labels: the passages of examples, in any of the layouts that examples have."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrt.arrays import BoolArray, Int64Array
from rankrt.errors import InputError
from rankrt.text.pairs import Pair
from rankrt_finetune.data.examples import read_lines

# Five folds with two pairs of each kind: with fewer, the error that is reported would be chance.
MIN_OF_EACH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Pairs, whether each is relevant, and the number of its query; `sha256` is that of their file."""

    pairs: Sequence[Pair]
    is_relevant: BoolArray
    query_of_pair: Int64Array
    n_queries: int
    sha256: str


def read_labelled(name: str) -> Labelled:
    """Read a file of labelled pairs. The lines of a query may stand anywhere, and it needs no relevant passage.

    Raises InputError, with the line, for a pair that cannot be used, and for a file that nothing can be fitted to.
    """
    examples = [line.example for line in read_lines(name)]
    labels = np.array([label for example in examples for label in example.labels], bool)
    n_relevant, n_others = int(labels.sum()), int((~labels).sum())
    if min(n_relevant, n_others) < MIN_OF_EACH:
        raise InputError(
            f"{name} has {n_relevant} relevant pairs and {n_others} others; a calibration needs {MIN_OF_EACH} of each"
            " or more"
        )
    numbers: dict[str, int] = {}
    queries = [numbers.setdefault(example.query, len(numbers)) for example in examples for _ in example.passages]
    with Path(name).open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return Labelled(
        pairs=[(example.query, passage) for example in examples for passage in example.passages],
        is_relevant=labels,
        query_of_pair=np.array(queries, np.int64),
        n_queries=len(numbers),
        sha256=sha256,
    )
