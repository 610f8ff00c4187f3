"""Rows of random ids, in lengths as passages and documents have them."""

from collections.abc import Sequence

import numpy as np

from rankrt.arrays import Int32Array
from rankrt.text.pairs import Encoded

# Shortest, longest and median length. Chosen: lengths of text are about log-normal.
_LAWS = {"passages": (16, 512, 170), "documents": (64, 2048, 600)}
_SPREAD = 0.6
# A request has 1 to 100 rows, each of the length that follows.
REQUESTS = ((1, 60), (1, 200), (10, 60), (10, 200), (32, 200), (100, 200))
# Ids before these are special.
_FIRST_ID = 4


def lengths_of(mix: str, n_tokens: int) -> list[int]:
    """Return lengths with about so many tokens together: all alike for a number, else drawn for the name of a law."""
    if mix.isdigit():
        return [int(mix)] * max(1, n_tokens // int(mix))
    shortest, longest, middle = _LAWS[mix]
    chance, lengths = np.random.default_rng(1), list[int]()
    while sum(lengths) < n_tokens:
        lengths.append(int(np.clip(chance.lognormal(np.log(middle), _SPREAD), shortest, longest)))
    return lengths


def rows_of(lengths: Sequence[int], n_ids: int, seed: int = 0) -> list[Int32Array]:
    """Return rows of random ids between <s>, 0, and </s>, 2."""
    chance = np.random.default_rng(seed)
    return [
        np.concatenate([[0], chance.integers(_FIRST_ID, n_ids, length - 2), [2]]).astype(np.int32) for length in lengths
    ]


def encoded_of(lengths: Sequence[int], n_ids: int, seed: int = 0) -> Encoded:
    """Return the same rows as a backend takes them."""
    return Encoded.of_rows(rows_of(lengths, n_ids, seed))
