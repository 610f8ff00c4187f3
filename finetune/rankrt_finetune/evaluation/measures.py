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
# ir-measures takes dictionaries, some 100 bytes a document, so that it gets some queries at a time.
_BLOCK_QUERIES = 256


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
        found = np.zeros((len(qrels), len(self.by_name)))
        for start in range(0, len(qrels), _BLOCK_QUERIES):
            block = list(qrels)[start : start + _BLOCK_QUERIES]
            self._fill(found[start : start + _BLOCK_QUERIES], block, qrels, run)
        return found

    def _fill(
        self,
        values: Float64Array,
        queries: Sequence[str],
        qrels: Mapping[str, Mapping[str, int]],
        run: Mapping[str, Sequence[str]],
    ) -> None:
        """Write the values of some queries, (n_queries, n_measures)."""
        rows = {query: i for i, query in enumerate(queries)}
        scored = {
            query: {document: float(len(ids) - rank) for rank, document in enumerate(ids)}
            for query in queries
            if (ids := run.get(query))
        }
        grades = {query: dict(qrels[query]) for query in queries}
        evaluator = ir_measures.evaluator(list(dict.fromkeys(self.by_name.values())), grades)
        for metric in evaluator.iter_calc(scored):
            for column, measure in enumerate(self.by_name.values()):
                if measure == metric.measure:
                    values[rows[metric.query_id], column] = metric.value


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
