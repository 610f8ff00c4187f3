"""Endless groups to train on: a question, the passage that answers it, and passages that do not.

Knows token ids, but neither tokenizer nor model nor loss. The same seed gives the same batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer

from rankrt.arrays import Int64Array
from tiny_reranker.corpus import Pool
from tiny_reranker.vocabulary import END_ID, PAD_ID, START_ID, Float64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of `n_groups` groups of one size, group after group, the relevant passage first in each.

    ids and mask are (n_rows, n_tokens) int64; the mask is 1 on tokens and 0 on padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    n_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How groups are drawn.

    n_groups            groups of a batch whose passages are cut to `_REFERENCE_TOKENS`; more for shorter passages
    n_negatives         passages of a group that do not answer its question
    n_hard              negatives are drawn from so many of BM25's best
    neighbour_share     share of the questions with a paragraph next to the relevant one as a negative
    cloze_share         share of the groups whose question is made from a passage (inverse cloze)
    passage_tokens      a batch's passages are cut to one of these
    head_share          share of the passages that are cut to their head, not around the question's pieces
    question_tokens     questions are cut to this
    monolingual_weight  how much more often a group comes from another pool than from an XQuAD one
    """

    n_groups: int = 10
    n_negatives: int = 3
    n_hard: int = 8
    neighbour_share: float = 0.4
    cloze_share: float = 0.25
    passage_tokens: tuple[int, ...] = (64, 96, 128, 160, 224)
    head_share: float = 0.2
    question_tokens: int = 48
    monolingual_weight: float = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question's ids, and the indices of the passage that answers it and of BM25's best others."""

    question: Int64Array
    relevant: int
    hard: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPool:
    """The passages' ids in the order of the text, questions about them, and the pool's weight."""

    passages: Sequence[Int64Array]
    examples: Sequence[Example]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A question's ids and passages' ids, the relevant one first."""

    question: Int64Array
    passages: Sequence[Int64Array]


# A row has some 32 tokens beside its passage.
_REFERENCE_TOKENS, _TOKENS_BESIDE_PASSAGE = 128, 32
# An inverse cloze question: so many tokens of a passage, without some of them, with the first or last tokens of another
# question ("who was the ...") before or after.
_CLOZE_TOKENS, _CLOZE_DROP_SHARE, _CLOZE_QUESTION_TOKENS = (6, 18), 0.3, 3


def tokenized(pool: Pool, tokenizer: Tokenizer, sampling: Sampling) -> TokenPool:
    """Turn a pool of texts into one of ids."""
    index = {passage_id: i for i, passage_id in enumerate(pool.passages)}
    questions = _ids(tokenizer, [question.text for question in pool.questions])
    examples = [
        Example(
            question=ids[: sampling.question_tokens],
            relevant=index[min(question.relevant)],
            hard=tuple(index[c] for c in question.candidates if c not in question.relevant)[: sampling.n_hard],
        )
        for question, ids in zip(pool.questions, questions, strict=True)
    ]
    return TokenPool(
        passages=_ids(tokenizer, list(pool.passages.values())),
        examples=examples,
        weight=1.0 if pool.data_set == "xquad" else sampling.monolingual_weight,
    )


def sample_batches(
    pools: Sequence[TokenPool], sampling: Sampling, rarity: Float64Array, seed: int = 0
) -> Iterator[Batch]:
    """Yield batches without end. Passages are cut around shared pieces of high `rarity`, (n_pieces,)."""
    random = Random(seed)
    weights = [pool.weight for pool in pools]
    while True:
        n_tokens = random.choice(sampling.passage_tokens)
        shrink = (_REFERENCE_TOKENS + _TOKENS_BESIDE_PASSAGE) / (n_tokens + _TOKENS_BESIDE_PASSAGE)
        n_groups = max(2, int(sampling.n_groups * shrink))
        groups = [sample_group(pool, sampling, random) for pool in random.choices(pools, weights, k=n_groups)]
        yield stack(
            [
                row(group.question, _cut_passage(group.question, passage, n_tokens, sampling, rarity, random))
                for group in groups
                for passage in group.passages
            ],
            n_groups,
        )


def sample_group(pool: TokenPool, sampling: Sampling, random: Random) -> Group:
    """Draw one group from a pool."""
    if random.random() < sampling.cloze_share:
        return _cloze_group(pool, sampling, random)
    return _question_group(pool, sampling, random)


def window(question: Int64Array, passage: Int64Array, n_tokens: int, rarity: Float64Array) -> Int64Array:
    """Return the first n_tokens in a row of the passage with the most of the question's rare pieces."""
    shared = np.where(np.isin(passage, question), np.maximum(rarity[passage], 0), 0)
    sums = np.cumsum(np.concatenate([[0.0], shared]))
    start = int(np.argmax(sums[n_tokens:] - sums[:-n_tokens])) if len(passage) > n_tokens else 0
    return passage[start : start + n_tokens]


def row(question: Int64Array, passage: Int64Array) -> Int64Array:
    """Join a pair by XLM-RoBERTa's template."""
    return np.concatenate([[START_ID], question, [END_ID, END_ID], passage, [END_ID]])


def stack(rows: Sequence[Int64Array], n_groups: int) -> Batch:
    """Pad rows on the right to the longest."""
    ids = np.full((len(rows), max(map(len, rows))), PAD_ID, np.int64)
    for i, content in enumerate(rows):
        ids[i, : len(content)] = content
    tensor = torch.from_numpy(ids)
    return Batch(ids=tensor, mask=(tensor != PAD_ID).long(), n_groups=n_groups)


def _question_group(pool: TokenPool, sampling: Sampling, random: Random) -> Group:
    """A question with some of BM25's best, perhaps a neighbour of the relevant passage, and one passage at random."""
    example = random.choice(pool.examples)
    n_hard = min(sampling.n_negatives - 1, len(example.hard))
    negatives = random.sample(example.hard, n_hard)
    if negatives and random.random() < sampling.neighbour_share:
        negatives[0] = _neighbour(pool, example.relevant, random)
    return _group(pool, example.question, example.relevant, negatives, sampling, random)


def _cloze_group(pool: TokenPool, sampling: Sampling, random: Random) -> Group:
    """A question made of a passage's words, with a neighbour of that passage and others at random."""
    relevant = random.randrange(len(pool.passages))
    words = _cloze_words(pool.passages[relevant], random)
    other = random.choice(pool.examples).question
    n = _CLOZE_QUESTION_TOKENS
    parts = [other[:n], words] if random.random() < 0.5 else [words, other[-n:]]
    return _group(pool, np.concatenate(parts), relevant, [_neighbour(pool, relevant, random)], sampling, random)


def _cloze_words(passage: Int64Array, random: Random) -> Int64Array:
    """Return a stretch of the passage without some of its tokens, its second half first (a question's word order)."""
    n_tokens = random.randint(*_CLOZE_TOKENS)
    start = random.randrange(max(1, len(passage) - n_tokens))
    stretch = passage[start : start + n_tokens]
    kept = stretch[[random.random() > _CLOZE_DROP_SHARE for _ in stretch]]
    words = kept if len(kept) else stretch
    return np.roll(words, -random.randrange(len(words)))


def _group(
    pool: TokenPool, question: Int64Array, relevant: int, negatives: list[int], sampling: Sampling, random: Random
) -> Group:
    """Complete the negatives with random passages."""
    n_missing = sampling.n_negatives - len(negatives)
    others = [_other(pool, relevant, random) for _ in range(n_missing)]
    return Group(question=question, passages=[pool.passages[i] for i in (relevant, *negatives, *others)])


def _neighbour(pool: TokenPool, index: int, random: Random) -> int:
    """Return a passage that is at most two places before or after, mostly of the same article."""
    near = range(max(0, index - 2), min(len(pool.passages), index + 3))
    return random.choice([i for i in near if i != index])


def _other(pool: TokenPool, index: int, random: Random) -> int:
    """Return any passage but this one."""
    return (index + random.randrange(1, len(pool.passages))) % len(pool.passages)


def _cut_passage(
    question: Int64Array,
    passage: Int64Array,
    n_tokens: int,
    sampling: Sampling,
    rarity: Float64Array,
    random: Random,
) -> Int64Array:
    if random.random() < sampling.head_share:
        return passage[:n_tokens]
    return window(question, passage, n_tokens, rarity)


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Int64Array]:
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int64) for encoding in encodings]
