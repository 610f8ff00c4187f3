"""The arrays that a graph takes for the rows of one run, by the graph's layout.

All layouts have token_type_ids, in the shape of input_ids. They are 0 in the query and 1 in the passage, each with the
special tokens after it. Few models know them, so the backends give a graph those arrays only that it declares.
"""

from collections.abc import Callable, Mapping

import numpy as np

from rankrt.arrays import Int32Array, Int64Array
from rankrt.artifact.manifest import Layout
from rankrt.backends.planner import spread_width
from rankrt.text.pairs import Encoded

# Graphs with windowed attention take the tokens of a run on a GPU in blocks of so many.
BLOCK_TOKENS = 128


def packed(encoded: Encoded, rows: Int64Array) -> dict[str, Int32Array]:
    """Concatenate rows: input_ids and token_type_ids (n_tokens,), row_offsets (n_rows + 1,)."""
    lengths = encoded.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.repeat(offsets[:-1] + encoded.passage_starts[rows], lengths)
    return {
        "input_ids": np.concatenate([encoded.row(row) for row in rows]),
        "token_type_ids": (np.arange(len(starts)) >= starts).astype(np.int32),
        "row_offsets": offsets.astype(np.int32),
    }


def stacked(encoded: Encoded, rows: Int64Array) -> dict[str, Int64Array]:
    """Stack rows of one length: input_ids and token_type_ids, both (n_rows, length)."""
    ids = np.stack([encoded.row(row) for row in rows]).astype(np.int64)
    types = np.arange(ids.shape[1]) >= encoded.passage_starts[rows, None]
    return {"input_ids": ids, "token_type_ids": types.astype(np.int64)}


def varlen(encoded: Encoded, rows: Int64Array, width: int | None = None) -> dict[str, Int32Array]:
    """Concatenate rows, with the position of each token, and its place in a matrix of the rows.

    token_offset  (n_rows, width) the places of all tokens in a matrix, in order, and after them the places that are
                  padding. If `width` is None, it is the length of the longest row
    token_rows    (n_tokens,) the row of each token
    blocks        (n_blocks,) the numbers of the blocks of tokens, for windowed attention
    """
    lengths = encoded.lengths[rows]
    is_token = np.arange(width or int(lengths.max())) < lengths[:, None]
    places = np.concatenate([np.flatnonzero(is_token), np.flatnonzero(~is_token)])
    rows_of_tokens, positions = np.nonzero(is_token)
    return {
        **packed(encoded, rows),
        "positions": positions.astype(np.int32),
        "token_rows": rows_of_tokens.astype(np.int32),
        "blocks": np.arange(-(-len(positions) // BLOCK_TOKENS), dtype=np.int32),
        "token_offset": places.astype(np.int32).reshape(is_token.shape),
    }


def spread(encoded: Encoded, rows: Int64Array) -> dict[str, Int32Array]:
    """Concatenate rows of like lengths, as `varlen` does, with places in a matrix as wide as each of them needs.

    A row's width depends on its own length alone. So attention adds in the same order whatever rows are beside it.
    """
    width = spread_width(int(encoded.lengths[rows].max()))
    assert spread_width(int(encoded.lengths[rows].min())) == width, "the planner puts like lengths together"
    return varlen(encoded, rows, width)


def padded(encoded: Encoded, rows: Int64Array) -> dict[str, Int32Array]:
    """Stack rows, padded with zeros: input_ids and token_type_ids (n_rows, longest), lengths (n_rows,)."""
    lengths = encoded.lengths[rows]
    places = np.arange(int(lengths.max()))
    is_token = places < lengths[:, None]
    ids = np.zeros(is_token.shape, np.int32)
    ids[is_token] = np.concatenate([encoded.row(row) for row in rows])
    types = is_token & (places >= encoded.passage_starts[rows, None])
    return {"input_ids": ids, "token_type_ids": types.astype(np.int32), "lengths": lengths.astype(np.int32)}


BATCHES: Mapping[Layout, Callable[[Encoded, Int64Array], Mapping[str, Int32Array | Int64Array]]] = {
    "packed": packed,
    "stacked": stacked,
    "spread": spread,
}
GPU_BATCHES: Mapping[Layout, Callable[[Encoded, Int64Array], Mapping[str, Int32Array]]] = {
    "varlen": varlen,
    "padded": padded,
}
