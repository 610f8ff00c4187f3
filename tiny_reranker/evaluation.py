"""The model's quality on questions about articles that it never saw, with BM25's order and a random one beside it.

All three order BM25's best 20 passages. The measures are nDCG@10 and MRR@10, as means over the questions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tiny_reranker.corpus import Pool, Question
from tiny_reranker.ranking import (
    expected_ndcg,
    expected_reciprocal_rank,
    ndcg,
    reciprocal_rank,
    score_pairs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The means over a set of questions."""

    ndcg: float
    mrr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The qualities of three orders over the same `n` questions."""

    n: int
    random: Quality
    bm25: Quality
    model: Quality


def evaluate(model: Any, tokenizer: Tokenizer, pools: Iterable[Pool]) -> dict[str, Comparison]:
    """Compare the three orders for each pool, by language, and their means over the languages, "mean"."""
    comparisons = {pool.language: compare(model, tokenizer, pool) for pool in pools}
    return {**comparisons, "mean": mean(list(comparisons.values()))}


def compare(model: Any, tokenizer: Tokenizer, pool: Pool) -> Comparison:
    """Compare the three orders over the questions of one pool."""
    as_found = [question.labels for question in pool.questions]
    ranked = [labels_by_score(question, scores) for question, scores in score_pool(model, tokenizer, pool)]
    return Comparison(
        n=len(as_found),
        random=_quality(as_found, expected_ndcg, expected_reciprocal_rank),
        bm25=_quality(as_found, ndcg, reciprocal_rank),
        model=_quality(ranked, ndcg, reciprocal_rank),
    )


def score_pool(model: Any, tokenizer: Tokenizer, pool: Pool) -> list[tuple[Question, Sequence[float]]]:
    """Return each question with the scores of its candidates."""
    pairs = [(question.text, pool.passages[c]) for question in pool.questions for c in question.candidates]
    ends = np.cumsum([len(question.candidates) for question in pool.questions])
    scores = np.split(score_pairs(model, tokenizer, pairs), ends[:-1])
    return [(question, of_one.tolist()) for question, of_one in zip(pool.questions, scores, strict=True)]


def labels_by_score(question: Question, scores: Sequence[float]) -> list[int]:
    """Return the labels, best score first. Of equals BM25's lower one is first, so BM25 never helps."""
    ranked = sorted(zip(scores, range(len(scores)), question.labels, strict=True), reverse=True)
    return [label for _, _, label in ranked]


def mean(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the means over comparisons, each with the same weight, and the sum of their questions."""

    def over(choose: Callable[[Comparison], Quality]) -> Quality:
        chosen = [choose(comparison) for comparison in comparisons]
        return Quality(ndcg=fmean(c.ndcg for c in chosen), mrr=fmean(c.mrr for c in chosen))

    return Comparison(
        n=sum(comparison.n for comparison in comparisons),
        random=over(lambda c: c.random),
        bm25=over(lambda c: c.bm25),
        model=over(lambda c: c.model),
    )


def table(quality: Mapping[str, Any]) -> str:
    """Return a Markdown table of the result of `as_json`, one language a row."""
    head = "| nDCG@10 / MRR@10 | random order | BM25 | this model | n |\n|---|---|---|---|---|\n"
    return head + "".join(f"| {name} | {_cells(row)} | {row['n']:,} |\n" for name, row in quality.items())


def as_json(comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
    """Return the numbers for JSON, rounded to 4 digits: one question of 291 moves a mean by up to .0034."""
    return {name: _round(asdict(comparison)) for name, comparison in comparisons.items()}


def _quality(
    labels: Sequence[list[int]], gain: Callable[[list[int]], float], rank: Callable[[list[int]], float]
) -> Quality:
    return Quality(ndcg=fmean(map(gain, labels)), mrr=fmean(map(rank, labels)))


def _cells(row: Mapping[str, Any]) -> str:
    qualities = (row["random"], row["bm25"], row["model"])
    return " | ".join(f"{q['ndcg']:.3f} / {q['mrr']:.3f}" for q in qualities)


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(content) for key, content in value.items()}
    return round(value, 4) if isinstance(value, float) else value
