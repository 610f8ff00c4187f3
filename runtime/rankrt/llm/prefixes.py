"""Which rows begin alike: a causal model computes a common beginning once. Knows token ids only: no text, no model.

A token of a causal model sees only what stands before it, so the keys and values of prefix, query and separator are the
same for every passage of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Int32Array, Int64Array
from rankrt.text.pairs import Encoded

# What stays of a row after its prefix: the last layer computes its last two tokens.
_LEAST_REST = 2
# A run of a single token would multiply by other kernels, whose last bits differ.
LEAST_SHARED = 2
# ONNX Runtime's attention takes the tokens of a piece in blocks of so many, or of a multiple: 2 * head_size, or less
# with a small cache. It multiplies a last block of one token by other kernels, whose last bits differ. So whether a
# piece may be cut in two depends on all three lengths. A head_size of 96 and a cache of 512 KB have blocks of 170.
_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """The beginnings of rows, up to the passage.

    lengths  (n_rows,) how many tokens of a row are its prefix; it is attended to apart, shared or not
    of_row   (n_rows,) which shared prefix a row begins with; -1 where it has its own
    ids      the tokens of each shared prefix
    """

    lengths: Int64Array
    of_row: Int64Array
    ids: tuple[Int32Array, ...]

    @property
    def n_saved_tokens(self) -> int:
        """How many tokens need not be computed, because rows share them."""
        return int(self.lengths[self.of_row >= 0].sum()) - sum(len(ids) for ids in self.ids)

    def each(self, encoded: Encoded) -> list[Int32Array]:
        """Return the tokens of all prefixes, the shared ones and those of single rows, which may be empty."""
        alone = np.flatnonzero(self.of_row < 0).tolist()
        return [*self.ids, *(encoded.row(row)[: self.lengths[row]] for row in alone)]

    def own_lengths(self, encoded: Encoded) -> Int64Array:
        """Return how many tokens of each row are its own, (n_rows,): all but those of a prefix that it shares."""
        return encoded.lengths - np.where(self.of_row >= 0, self.lengths, 0)


def shared_prefixes(encoded: Encoded) -> Prefixes:
    """Return the beginnings of rows; those that at least two rows have are shared."""
    alone = own_prefixes(encoded)
    rows_of: dict[bytes, list[int]] = {}
    for row, n_tokens in enumerate(alone.lengths):
        rows_of.setdefault(encoded.row(row)[:n_tokens].tobytes(), []).append(row)
    shared = [rows for rows in rows_of.values() if len(rows) > 1 and alone.lengths[rows[0]] >= LEAST_SHARED]
    of_row = alone.of_row
    for number, rows in enumerate(shared):
        of_row[rows] = number
    ids = tuple(encoded.row(rows[0])[: alone.lengths[rows[0]]] for rows in shared)
    return Prefixes(lengths=alone.lengths, of_row=of_row, ids=ids)


def beginning_of(prefixes: Sequence[Int32Array]) -> Int32Array:
    """Return the tokens that all prefixes begin with: of different queries, what the instruction gives them."""
    first, *others = prefixes
    return first[: min((n_alike(first, other) for other in others), default=len(first))]


def n_cut(n_alike: int, prefixes: Sequence[Int32Array]) -> int:
    """Return how many of the tokens that prefixes begin with may be computed apart without a change of a single bit.

    0 if none may.
    """
    lengths = np.array([len(ids) for ids in prefixes])
    if _has_odd_end(lengths):
        return 0
    fitting = (n for n in range(n_alike, 0, -1) if not _has_odd_end(np.array([n])) and not _has_odd_end(lengths - n))
    return next(fitting, 0)


def n_alike(ids: Int32Array, others: Int32Array) -> int:
    """Return how many of the first tokens are the same."""
    n = min(len(ids), len(others))
    differing = np.flatnonzero(ids[:n] != others[:n])
    return int(differing[0]) if len(differing) else n


def own_prefixes(encoded: Encoded) -> Prefixes:
    """Return the beginnings of rows, each row's its own."""
    starts = encoded.passage_starts
    lengths = np.where(encoded.lengths - starts >= _LEAST_REST, starts, 0)
    return Prefixes(lengths=lengths, of_row=np.full(encoded.n_rows, -1, np.int64), ids=())


def _has_odd_end(lengths: Int64Array) -> bool:
    """Tell whether a piece of one of these lengths may end with a block of a single token."""
    return bool((lengths % _BLOCK_TOKENS == 1).any())
