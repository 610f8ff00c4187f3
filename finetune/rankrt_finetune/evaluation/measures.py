"""Measures of rankings, computed by ir-measures: what they are called, and their values for each query."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np

from rankrt.arrays import Float64Array
from rankrt.errors import InputError

DEFAULT = ("nDCG@10", "MRR@10", "MAP", "R@10")
# As others write them, in lower case. ir-measures knows the names on the right.
_NAMES = {
    "ndcg": "nDCG",
    "mrr": "RR",
    "rr": "RR",
    "map": "AP",
    "ap": "AP",
    "recall": "R",
    "r": "R",
    "precision": "P",
    "p": "P",
    "success": "Success",
    "hit": "Success",
    "hits": "Success",
}
_DEFAULT_CUTOFF = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Measures by the names that were typed."""

    by_name: Mapping[str, Any]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Measures":
        """Read names such as nDCG@10, MRR@10, MAP, recall@100 and P(rel=2)@5. Raises InputError for an unknown one."""
        return cls(by_name={name: _measure(name) for name in dict.fromkeys(names)})

    @property
    def names(self) -> list[str]:
        """The names, in their order."""
        return list(self.by_name)

    @property
    def deepest(self) -> int:
        """The deepest rank that a measure with a cutoff looks at; 10 if none has one."""
        cutoffs = [measure.params.get("cutoff") for measure in self.by_name.values()]
        return max((cutoff for cutoff in cutoffs if isinstance(cutoff, int)), default=_DEFAULT_CUTOFF)

    def values(self, qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Sequence[str]]) -> Float64Array:
        """Return the values, (n_queries, n_measures), of rankings of ids by query, in the order of `qrels`.

        ir-measures orders by scores, and ties by ids. Here the scores are ranks, so the order is the one that is given.
        A judged query that has no ranking counts as 0.
        """
        scored = {
            query: {document: float(len(ids) - rank) for rank, document in enumerate(ids)}
            for query, ids in run.items()
            if ids
        }
        rows = {query: i for i, query in enumerate(qrels)}
        columns = {measure: i for i, measure in enumerate(self.by_name.values())}
        found = np.zeros((len(rows), len(columns)))
        grades = {query: dict(of_query) for query, of_query in qrels.items()}
        for metric in ir_measures.evaluator(list(columns), grades).iter_calc(scored):
            found[rows[metric.query_id], columns[metric.measure]] = metric.value
        return found[:, [columns[measure] for measure in self.by_name.values()]]


def _measure(name: str) -> Any:
    base = re.split(r"[@(]", name, maxsplit=1)[0]
    rest = name[len(base) :]
    try:
        measure = ir_measures.parse_measure(_NAMES.get(base.lower(), base) + rest)
        ir_measures.evaluator([measure], {})
    except (NameError, ValueError, SyntaxError, AssertionError) as error:
        raise InputError(
            f"{name} is not a measure of ir-measures: {' '.join(str(error).split()):.200}. Examples: nDCG@10, MRR@10,"
            " MAP, R@100, P@5, Success@1"
        ) from error
    return measure
