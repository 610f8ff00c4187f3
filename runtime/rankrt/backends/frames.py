"""Frames of short runs on a GPU: shapes that recur, so that a run can be recorded once and replayed.

A run of XLM-R-large starts 340 kernels, one after the other. For few tokens that takes longer than to compute them.
A recording, a CUDA graph, starts all at once, but its shapes are fixed. So a short run is filled up to a frame.

What is filled up comes before the rows: one row of zeros with the tokens that are missing, and rows without tokens.
No row sees another one, so scores stay, within the rounding that shapes decide on a GPU anyway.
"""

from typing import NamedTuple, Self

import numpy as np

from rankrt.arrays import Int32Array, Int64Array
from rankrt.backends.batch import varlen
from rankrt.text.pairs import Encoded

# Longer runs keep a GPU busy while the host starts kernels. On an H100, 10 rows of 200 tokens gained 11 % by a
# recording, 10 rows of 60 tokens 38 %.
_MOST_TOKENS, _MOST_ROWS = 1024, 32
# 16 numbers of tokens and 6 of rows make 96 frames at most.
_STEP_TOKENS = 64


class Frame(NamedTuple):
    """The tokens and the rows of a run, one row of which is filled up."""

    n_tokens: int
    n_rows: int

    @classmethod
    def around(cls, lengths: Int64Array) -> Self | None:
        """Return the frame for rows of these lengths; None if the run is not short."""
        n_tokens, n_rows = int(lengths.sum()), len(lengths)
        if n_tokens > _MOST_TOKENS or n_rows > _MOST_ROWS:
            return None
        return cls(-(-n_tokens // _STEP_TOKENS) * _STEP_TOKENS, 1 + (1 << (n_rows - 1).bit_length()))

    def fill(self, encoded: Encoded, rows: Int64Array) -> dict[str, Int32Array]:
        """Return the inputs of the rows, as `varlen` does. The rows that were asked for are the last ones."""
        own = [encoded.row(row) for row in rows]
        n_empty = self.n_rows - 1 - len(own)
        missing = np.zeros(self.n_tokens - sum(map(len, own)), np.int32)
        starts = [0] * (1 + n_empty) + encoded.passage_starts[rows].tolist()
        filled = Encoded.of_rows([missing, *[missing[:0]] * n_empty, *own], starts)
        return varlen(filled, np.arange(self.n_rows), self.n_tokens)
