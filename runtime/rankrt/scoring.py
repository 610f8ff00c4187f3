"""Scoring pairs with a loaded variant: rows are encoded block by block, run, and the best row of each pair counts.

Knows no order of documents, and nothing of how a model is found or loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.artifact.manifest import Variant
from rankrt.backends import Backend, Logits
from rankrt.errors import ScoreError
from rankrt.llm import progressive
from rankrt.llm.exits import Keep
from rankrt.llm.prefixes import shared_prefixes
from rankrt.llm.progressive import Policy, Progress
from rankrt.text.options import Rules
from rankrt.text.pairs import Encoded, Pair, PairTokenizer, Worded

# Pairs are encoded in blocks, so that a million of them need memory for their texts and scores only.
_BLOCK_PAIRS = 4096
# Where progress is shown: a large model on a CPU takes seconds for so many.
_SHOWN_BLOCK_PAIRS = 256
# For a GPU the next block is encoded while this one is scored: a few runs, so that the first does not wait for long.
_GPU_BLOCK_PAIRS = 512
# Called with the number of pairs of a block that was scored.
OnProgress: TypeAlias = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of pairs, and what they took.

    logits           (n_pairs,) the best logit among a pair's rows
    spans            (n_pairs, 2) the characters of the passage in the row that scored best, where passages are chunked
    truncated        (n_pairs,) whether some of the passage was not seen
    query_truncated  (n_pairs,) whether some of the query was not seen
    n_tokens         the tokens the model computed
    n_saved_tokens   the tokens that it did not, because rows begin alike
    """

    logits: Float32Array
    spans: Int64Array
    truncated: BoolArray
    query_truncated: BoolArray
    n_tokens: int
    n_saved_tokens: int = 0

    @classmethod
    def of(cls, encoded: Encoded, found: Logits) -> "Scored":
        """Return the scores of pairs by the logits of their rows at one exit."""
        (logits,) = found.values
        best = best_rows(logits, encoded.pair_of_row, len(encoded.truncated))
        return cls(
            logits=logits[best],
            spans=encoded.spans[best],
            truncated=encoded.truncated,
            query_truncated=encoded.query_truncated,
            n_tokens=len(encoded.ids) - found.n_saved_tokens,
            n_saved_tokens=found.n_saved_tokens,
        )

    @classmethod
    def joined(cls, blocks: Sequence["Scored"]) -> "Scored":
        """Return the scores of all blocks, one after the other."""
        return cls(
            logits=np.concatenate([block.logits for block in blocks]),
            spans=np.concatenate([block.spans for block in blocks]),
            truncated=np.concatenate([block.truncated for block in blocks]),
            query_truncated=np.concatenate([block.query_truncated for block in blocks]),
            n_tokens=sum(block.n_tokens for block in blocks),
            n_saved_tokens=sum(block.n_saved_tokens for block in blocks),
        )

    def with_scores_of(self, other: "Scored", pairs: Int64Array) -> "Scored":
        """Return these scores with those of some pairs, by their numbers, in the place of their own."""
        logits, spans = self.logits.copy(), self.spans.copy()
        logits[pairs], spans[pairs] = other.logits, other.spans
        return replace(self, logits=logits, spans=spans, n_tokens=self.n_tokens + other.n_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A loaded variant, and how texts become its rows. `exits` is where a score is read, as for a `Backend`."""

    backend: Backend
    variant: Variant
    tokenizer: PairTokenizer
    rules: Rules
    exits: tuple[int, ...] = ()

    def score(self, pairs: Sequence[Pair], on_progress: OnProgress | None = None) -> Scored:
        """Score pairs; `on_progress` is called with the number of pairs of every block that was scored."""
        blocks: list[Scored] = []
        for encoded in self._encoded(pairs, _BLOCK_PAIRS if on_progress is None else _SHOWN_BLOCK_PAIRS):
            found = self._logits(encoded, self.exits, sum(len(block.truncated) for block in blocks))
            blocks.append(Scored.of(encoded, found))
            if on_progress is not None:
                on_progress(len(encoded.truncated))
        return Scored.joined(blocks)

    def score_at(self, exits: Sequence[int], pairs: Sequence[Pair]) -> Float32Array:
        """Return the logits of pairs at several exits, (n_exits, n_pairs)."""
        blocks: list[Float32Array] = []
        for encoded in self._encoded(pairs, _BLOCK_PAIRS):
            found, n_pairs = self._logits(encoded, exits, sum(b.shape[1] for b in blocks)), len(encoded.truncated)
            blocks.append(np.stack([at[best_rows(at, encoded.pair_of_row, n_pairs)] for at in found.values]))
        return np.concatenate(blocks, axis=1)

    def score_progressively(self, pairs: Sequence[Pair], top_n: int, policy: Policy) -> tuple[Scored, Progress]:
        """Score pairs of one query, a row each, as far as each has to go for the first `top_n` to be known."""
        encoded = self.tokenizer.encode(pairs, self.rules)
        n_saved = 0

        def score(rows: Int64Array, exits: Sequence[int], keep: Keep | None) -> Float32Array:
            nonlocal n_saved
            if keep is None:
                starts = encoded.passage_starts[rows].tolist()
                chosen = Encoded.of_rows([encoded.row(row) for row in rows], starts, encoded.n_suffix)
                return self.backend.logits(chosen, exits).last
            found = self.backend.logits(encoded, exits, keep)
            n_saved = found.n_saved_tokens
            return found.last

        progress = progressive.run(score, shared_prefixes(encoded).own_lengths(encoded), top_n, policy)
        self._check_finite(progress.scores, encoded, 0)
        return Scored.of(encoded, Logits(values=progress.scores[None], n_saved_tokens=n_saved)), progress

    def _encoded(self, pairs: Sequence[Pair], size: int) -> Iterator[Encoded]:
        """Encode pairs block by block; for a GPU the next block, of its own size, while this one is scored."""
        queries: dict[str, Worded] = {}  # tokenized once for all blocks
        is_gpu = self.backend.capacity.is_gpu
        size = _GPU_BLOCK_PAIRS if is_gpu else size
        starts = range(0, max(1, len(pairs)), size)

        def encode(start: int) -> Encoded:
            return self.tokenizer.encode(pairs[start : start + size], self.rules, queries)

        if not is_gpu:
            yield from map(encode, starts)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
            ahead = pool.submit(encode, starts[0])
            for start in starts[1:]:
                encoded, ahead = ahead.result(), pool.submit(encode, start)
                yield encoded
            yield ahead.result()

    def _logits(self, encoded: Encoded, exits: Sequence[int], n_before: int) -> Logits:
        """Return the logits of the rows of some pairs; so many pairs of the call came before them."""
        found = self.backend.logits(encoded, exits)
        for logits in found.values:
            self._check_finite(logits, encoded, n_before)
        return found

    def _check_finite(self, logits: Float32Array, encoded: Encoded, n_before: int) -> None:
        """Raise ScoreError, naming the pair, for NaN or infinity."""
        if np.isfinite(logits).all():
            return
        row = int(np.flatnonzero(~np.isfinite(logits))[0])
        found = f"{self.variant.name} answered {logits[row]} for pair {n_before + encoded.pair_of_row[row]}"
        if self.variant.precision == "fp32":
            raise ScoreError(
                f"{found}: no precision is more exact, so the checkpoint's weights are at fault; export another one"
            )
        raise ScoreError(
            f"{found}: use precision='fp32'. If that answers the same, the checkpoint's weights are at fault"
        )


def sigmoid(logits: Float32Array) -> Float32Array:
    """Map logits to [0, 1] as FlagEmbedding does: 1 / (1 + exp(-x)) in double precision, rounded to float32."""
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def best_rows(logits: Float32Array, pair_of_row: Int64Array, n_pairs: int) -> Int64Array:
    """Return for each pair the row with the highest logit, the first of equals. Every pair has a row."""
    order = np.lexsort((-logits, pair_of_row))
    return order[np.searchsorted(pair_of_row[order], np.arange(n_pairs))]
