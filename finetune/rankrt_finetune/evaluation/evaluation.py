"""An evaluation: each system ranks the candidates of each query, and the rankings are measured and compared."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrt.arrays import Float64Array
from rankrt_finetune.evaluation.comparison import Difference, Likeness, difference, interval, likeness
from rankrt_finetune.evaluation.datasets import Dataset
from rankrt_finetune.evaluation.kept import Kept
from rankrt_finetune.evaluation.measures import Measures
from rankrt_finetune.evaluation.rankings import Asked, Ranked, System

# Opens a bar for so many pairs under a title; it is called with the number of pairs that are done.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came out for one system, or for the first stage alone.

    values       (n_queries, n_measures)
    intervals    the 95 % interval of each measure's mean; None for a single query
    differences  from the first system, by measure; None for that system itself
    compared_to  the system that `likeness` is from: the first one with the same weights
    rankings     by query
    seconds      spent on scoring; 0 for the first stage
    """

    name: str
    values: Float64Array
    intervals: Sequence[tuple[float, float] | None]
    differences: Sequence[Difference] | None
    compared_to: str | None = None
    likeness: Likeness | None = None
    rankings: Mapping[str, Ranked]
    seconds: float = 0.0
    is_first_stage: bool = False

    @property
    def means(self) -> list[float]:
        """The mean of each measure over the queries."""
        return [float(mean) for mean in self.values.mean(axis=0)]

    @property
    def n_pairs(self) -> int:
        """How many pairs were ranked."""
        return sum(len(ranked.order) for ranked in self.rankings.values())

    @property
    def n_truncated(self) -> int | None:
        """How many of them were cut; None where that is not known."""
        known = [ranked.n_truncated for ranked in self.rankings.values() if ranked.n_truncated is not None]
        return sum(known) if known else None

    @property
    def pairs_per_s(self) -> float | None:
        """How many pairs were ranked in a second."""
        return self.n_pairs / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All rows on one data set; the first stage is the last row."""

    dataset: Dataset
    measures: Measures
    rows: Sequence[Row]

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return self.rows[0]

    @property
    def can_be_tested(self) -> bool:
        """Whether there are enough queries for an interval and a test."""
        return len(self.dataset.queries) > 1


def evaluate(dataset: Dataset, systems: Sequence[System], measures: Measures, *, folder: Path, bar: Bar) -> Evaluation:
    """Rank with each system in turn, and compare. Only one model is loaded at a time.

    Rankings are kept in the folder, and not made again if they are there.
    """
    data = dataset.digest
    rankings: list[tuple[System, Kept]] = []
    for system in systems:
        kept = Kept(folder, system, data)
        _rank(dataset, system, kept, bar)
        rankings.append((system, kept))
    return _compared(dataset, measures, rankings)


def _rank(dataset: Dataset, system: System, kept: Kept, bar: Bar) -> None:
    """Rank what is not kept yet. The model is not loaded if everything is."""
    remaining = [query for query in dataset.queries if query not in kept.rankings]
    with bar(system.name, dataset.n_pairs) as advance:
        advance(sum(len(ranked.order) for ranked in kept.rankings.values()))
        if not remaining:
            return
        with system.open() as rank:
            for block in _blocks(dataset, remaining, system.block_pairs):
                asked = [_asked(dataset, query) for query in block]
                begun = time.perf_counter()
                found = rank(asked)
                kept.add(block, found, time.perf_counter() - begun)
                advance(sum(len(one.documents) for one in asked))


def _blocks(dataset: Dataset, queries: Sequence[str], n_pairs: int) -> Iterator[list[str]]:
    """Yield queries with at least so many candidates together, if there are as many left."""
    block, n = list[str](), 0
    for query in queries:
        block.append(query)
        n += len(dataset.candidates[query].ids)
        if n >= n_pairs:
            yield block
            block, n = [], 0
    if block:
        yield block


def _asked(dataset: Dataset, query: str) -> Asked:
    names = dataset.candidates[query].ids
    return Asked(query=dataset.queries[query], documents=[dataset.documents.text(name) for name in names])


def _compared(dataset: Dataset, measures: Measures, rankings: Sequence[tuple[System, Kept]]) -> Evaluation:
    rows: list[Row] = []
    first_of: dict[str, tuple[str, Mapping[str, Ranked]]] = {}
    for system, kept in rankings:
        found = {query: kept.rankings[query] for query in dataset.queries}
        name, theirs = first_of.setdefault(system.weights, (system.name, found))
        is_other = name != system.name
        rows.append(
            _row(
                system.name,
                dataset,
                measures,
                found,
                rows[0] if rows else None,
                compared_to=name if is_other else None,
                likeness=likeness(found, theirs) if is_other else None,
                seconds=kept.seconds,
            )
        )
    as_given = {
        query: Ranked(order=np.arange(len(found.ids)), scores=np.array(found.scores, np.float32))
        for query, found in dataset.candidates.items()
    }
    rows.append(_row(dataset.first_stage, dataset, measures, as_given, rows[0] if rows else None, is_first_stage=True))
    return Evaluation(dataset=dataset, measures=measures, rows=rows)


def _row(
    name: str,
    dataset: Dataset,
    measures: Measures,
    rankings: Mapping[str, Ranked],
    baseline: Row | None,
    *,
    compared_to: str | None = None,
    likeness: Likeness | None = None,
    seconds: float = 0.0,
    is_first_stage: bool = False,
) -> Row:
    values = measures.values(dataset.qrels, {query: ids(dataset, query, found) for query, found in rankings.items()})
    columns = range(len(measures.names))
    return Row(
        name=name,
        values=values,
        intervals=[interval(values[:, i]) for i in columns],
        differences=None if baseline is None else [difference(values[:, i], baseline.values[:, i]) for i in columns],
        compared_to=compared_to,
        likeness=likeness,
        rankings=rankings,
        seconds=seconds,
        is_first_stage=is_first_stage,
    )


def ids(dataset: Dataset, query: str, ranked: Ranked) -> list[str]:
    """Return the documents of a query in the order of a ranking."""
    names = dataset.candidates[query].ids
    return [names[i] for i in ranked.order]
