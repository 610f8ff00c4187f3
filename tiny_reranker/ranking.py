"""Orders of passages: the scores that make them, and measures of their quality.

Measures take labels in the order of a ranking: 1 for relevant, 0 for not.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from rankrt.arrays import Float32Array
from tiny_reranker.batches import stack
from tiny_reranker.files import LONGEST_ROW_TOKENS
from tiny_reranker.training import classifier_scores

# Measures read the first ten.
DEPTH = 10
_ROWS_AT_ONCE = 32


def ndcg(labels: Sequence[int]) -> float:
    """Return the discounted gain of the first 10, as a share of the best order's."""
    return _dcg(labels) / _dcg(sorted(labels, reverse=True))


def reciprocal_rank(labels: Sequence[int]) -> float:
    """Return 1 / the rank of the first relevant passage, 0 if it is not among the first 10."""
    return next((1 / rank for rank, label in enumerate(labels[:DEPTH], 1) if label), 0.0)


def expected_ndcg(labels: Sequence[int]) -> float:
    """Return the mean nDCG@10 over all orders. Every rank has the same share of relevant passages."""
    share = sum(labels) / len(labels)
    return _dcg([1] * len(labels)) * share / _dcg(sorted(labels, reverse=True))


def expected_reciprocal_rank(labels: Sequence[int]) -> float:
    """Return the mean reciprocal rank@10 over all orders, from each rank's chance to be the first relevant."""
    n, n_relevant = len(labels), sum(labels)
    ranks = range(1, min(DEPTH, n) + 1)
    chances = (math.comb(n - rank, n_relevant - 1) / math.comb(n, n_relevant) for rank in ranks)
    return sum(chance / rank for rank, chance in enumerate(chances, 1))


def score_pairs(model: Any, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Float32Array:
    """Return the model's logits of (question, passage) pairs, in order. Passages are cut to 512 tokens a row."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST_ROW_TOKENS, strategy="only_second")
    rows = [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(list(pairs))]
    by_length = np.argsort([len(row) for row in rows], kind="stable")
    scores = np.empty(len(rows), np.float32)
    with torch.inference_mode(), tqdm(total=len(rows), desc="score", unit="pair", leave=False) as progress:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = by_length[start : start + _ROWS_AT_ONCE]
            batch = stack([rows[i] for i in chosen], n_groups=1)
            scores[chosen] = classifier_scores(model, batch).numpy()
            progress.update(len(chosen))
    return scores


def _dcg(labels: Sequence[int]) -> float:
    return sum(label / math.log2(rank + 1) for rank, label in enumerate(labels[:DEPTH], 1))
