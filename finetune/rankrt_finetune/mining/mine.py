"""Mining: for each example, passages of a corpus are found, perhaps scored by a reranker, filtered, and the best kept.

A passage that is found and really answers the query would teach the opposite of the truth. So positives of the same
query are never taken, on whichever line they stand, and scores can exclude a passage that looks too good.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import sha256_of
from rankrt.errors import InputError
from rankrt.scoring import sigmoid
from rankrt_finetune.data.corpus import read_corpus
from rankrt_finetune.data.examples import Example, read_examples
from rankrt_finetune.data.queries import digest
from rankrt_finetune.mining.bm25 import Bm25
from rankrt_finetune.mining.embedder import Embedder
from rankrt_finetune.mining.found import Found
from rankrt_finetune.resuming import write_blocks
from rankrt_finetune.teaching import identity

_BLOCK_EXAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of the passages that are found become negatives.

    n_negatives      how many of them
    first, last      the ranks that are considered, from 1. The very first are often answers that nobody has marked
    pick             "top" takes the best of them, "random" draws
    max_score        no passage with a higher score
    margin           no passage whose score is not at least so much below the lowest of a positive
    relative_margin  no passage with more than this share, less than 1, of that score taken off
    seed             of the draws

    Scores are from 0 to 1: the sigmoid of a reranker's logits, or an embedder's cosine similarity.
    """

    n_negatives: int = 15
    first: int = 1
    last: int = 100
    pick: Literal["top", "random"] = "top"
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    seed: int = 0

    @property
    def needs_scores(self) -> bool:
        """Whether passages are excluded by their scores."""
        return any(limit is not None for limit in (self.max_score, self.margin, self.relative_margin))

    def bar(self, positives: Float32Array) -> float:
        """Return the highest score that a negative may have."""
        lowest = float(positives.min())
        limits = (
            self.max_score,
            None if self.margin is None else lowest - self.margin,
            None if self.relative_margin is None else lowest * (1 - self.relative_margin),
        )
        return min((limit for limit in limits if limit is not None), default=np.inf)


@dataclass(slots=True, kw_only=True)
class Mined:
    """How mining went: examples, those that got fewer negatives than asked for, and passages excluded by score."""

    n_examples: int = 0
    n_short: int = 0
    n_excluded: int = 0


def mine(
    source: Path,
    corpus: Path,
    out: Path,
    choice: Choice,
    *,
    embedder: str | None = None,
    judge: Reranker | None = None,
    on_progress: Callable[[int], object] = lambda n_examples: None,
) -> Mined:
    """Write the examples of a file with negatives from a corpus after those that they have.

    embedder   a model of sentence-transformers that finds passages; by default BM25 does
    judge      a reranker that orders what is found; its logits are written as pos_scores and neg_scores

    Raises InputError, with the line, for what cannot be read, and if scores are to exclude and nothing gives any.
    """
    if choice.needs_scores and embedder is None and judge is None:
        raise InputError(
            "max_score, margin and relative_margin need scores from 0 to 1, which bm25 alone does not give"
        )
    mined = Mined()

    def make(n_blocks: int, folder: Path) -> Iterator[Sequence[str]]:
        passages = read_corpus(corpus)
        search = Bm25(passages) if embedder is None else Embedder(embedder, passages, folder / "corpus.npy")
        miner = _Miner(passages, _answers(source), search, judge, choice, mined)
        examples = read_examples(source)
        on_progress(sum(1 for _ in islice(examples, n_blocks * _BLOCK_EXAMPLES)))
        while block := list(islice(examples, _BLOCK_EXAMPLES)):
            yield [example.line() for example in miner.with_negatives(block)]
            on_progress(len(block))

    made_from = {
        "input": sha256_of(source),
        "corpus": sha256_of(corpus),
        "embedder": embedder,
        "reranker": None if judge is None else identity(judge),
        "options": asdict(choice),
    }
    write_blocks(out, made_from=made_from, block_size=_BLOCK_EXAMPLES, make=make)
    return mined


def _answers(source: Path) -> dict[int, set[int]]:
    """Return the positives of each query, of all its lines, by their digests."""
    answers: dict[int, set[int]] = {}
    for example in read_examples(source):
        answers.setdefault(digest(example.query), set()).update(map(digest, example.pos))
    return answers


@dataclass(frozen=True, slots=True)
class _Miner:
    """What negatives are found and chosen by. `answers` are the digests of the positives, by that of the query."""

    passages: Sequence[str]
    answers: dict[int, set[int]]
    search: Bm25 | Embedder
    judge: Reranker | None
    choice: Choice
    mined: Mined

    def with_negatives(self, examples: Sequence[Example]) -> list[Example]:
        """Return examples with negatives after their own, and with logits of all passages if a reranker judges."""
        found = self.search.find([example.query for example in examples], self.choice.last)
        return [self._with_negatives(*one) for one in zip(examples, found, strict=True)]

    def _with_negatives(self, example: Example, found: Found) -> Example:
        n_own, candidates, similarity = len(example.passages), *self._candidates(example, found)
        everything = (*example.passages, *candidates)
        logits, scores, order = None, None, list(range(len(candidates)))
        if self.judge is not None:
            logits = self.judge.evaluate([(example.query, passage) for passage in everything]).logits
            scores, order = sigmoid(logits), np.argsort(-logits[n_own:], kind="stable").tolist()
        elif self.choice.needs_scores and isinstance(self.search, Embedder):
            scores = np.concatenate([self.search.similarity(example.query, example.passages), similarity])
        chosen = self._chosen(example, order, scores)
        more = replace(example, neg=(*example.neg, *(candidates[i] for i in chosen)), pos_scores=None, neg_scores=None)
        if logits is None:
            return more
        return more.with_scores(logits[[*range(n_own), *(n_own + i for i in chosen)]].tolist())

    def _candidates(self, example: Example, found: Found) -> tuple[list[str], Float32Array]:
        """Return the passages of the ranks that count, without those that the example has, and their similarity."""
        taken = self.answers[digest(example.query)] | set(map(digest, example.neg))
        ranks = [
            rank
            for rank in range(self.choice.first - 1, len(found.passages))
            if digest(self.passages[found.passages[rank]]) not in taken
        ]
        similarity = np.zeros(len(ranks), np.float32) if found.scores is None else found.scores[ranks]
        return [self.passages[found.passages[rank]] for rank in ranks], similarity

    def _chosen(self, example: Example, order: list[int], scores: Float32Array | None) -> list[int]:
        """Return the candidates that become negatives, of those in `order`; `scores` are of all passages."""
        choice, n_own = self.choice, len(example.passages)
        if scores is not None:
            bar = choice.bar(scores[: len(example.pos)])
            allowed = [i for i in order if scores[n_own + i] <= bar]
            self.mined.n_excluded += len(order) - len(allowed)
            order = allowed
        if choice.pick == "random":
            n_drawn = min(choice.n_negatives, len(order))
            drawn = set(Random(f"{choice.seed} {digest(example.query)}").sample(order, n_drawn))
            order = [i for i in order if i in drawn]
        self.mined.n_examples += 1
        self.mined.n_short += len(order) < choice.n_negatives
        return order[: choice.n_negatives]
