"""Which rows begin alike: a causal model computes a common beginning once. Knows token ids only: no text, no model.

A token of a causal model sees only what stands before it, so the keys and values of prefix, query and separator are the
same for every passage of a query.
"""

from dataclasses import dataclass

import numpy as np

from rankrt.arrays import Int32Array, Int64Array
from rankrt.text.pairs import Encoded

# What stays of a row after its prefix: the last layer computes its last two tokens.
_LEAST_REST = 2
# A run of a single token would multiply by other kernels, whose last bits differ.
_LEAST_SHARED = 2


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
        """How many tokens need not be computed."""
        return int(self.lengths[self.of_row >= 0].sum()) - sum(len(ids) for ids in self.ids)

    def own_lengths(self, encoded: Encoded) -> Int64Array:
        """Return how many tokens of each row are its own, (n_rows,): all but those of a prefix that it shares."""
        return encoded.lengths - np.where(self.of_row >= 0, self.lengths, 0)


def shared_prefixes(encoded: Encoded) -> Prefixes:
    """Return the beginnings of rows; those that at least two rows have are shared."""
    alone = own_prefixes(encoded)
    rows_of: dict[bytes, list[int]] = {}
    for row, n_tokens in enumerate(alone.lengths):
        rows_of.setdefault(encoded.row(row)[:n_tokens].tobytes(), []).append(row)
    shared = [rows for rows in rows_of.values() if len(rows) > 1 and alone.lengths[rows[0]] >= _LEAST_SHARED]
    of_row = alone.of_row
    for number, rows in enumerate(shared):
        of_row[rows] = number
    ids = tuple(encoded.row(rows[0])[: alone.lengths[rows[0]]] for rows in shared)
    return Prefixes(lengths=alone.lengths, of_row=of_row, ids=ids)


def common_prefix(encoded: Encoded) -> Prefixes | None:
    """Return the beginning that all rows have, even a single row; None if they have several, or one too short."""
    alone = own_prefixes(encoded)
    n_tokens = int(alone.lengths[0])
    ids = encoded.row(0)[:n_tokens]
    is_common = (alone.lengths == n_tokens).all() and all(
        np.array_equal(encoded.row(row)[:n_tokens], ids) for row in range(1, encoded.n_rows)
    )
    if n_tokens < _LEAST_SHARED or not is_common:
        return None
    return Prefixes(lengths=alone.lengths, of_row=np.zeros(encoded.n_rows, np.int64), ids=(ids,))


def own_prefixes(encoded: Encoded) -> Prefixes:
    """Return the beginnings of rows, each row's its own."""
    starts = encoded.passage_starts
    lengths = np.where(encoded.lengths - starts >= _LEAST_REST, starts, 0)
    return Prefixes(lengths=lengths, of_row=np.full(encoded.n_rows, -1, np.int64), ids=())
