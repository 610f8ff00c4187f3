"""XLM-R in PyTorch, in the two ways that people run it on a GPU: padded matrices, and one sequence of rows."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from rankrt.arrays import Int32Array

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16 if DEVICE == "cuda" else torch.float32
# The most tokens of a call. rankrt's own runs have as many.
RUN_TOKENS = 16_384
_PAD = 1
# XLM-R numbers positions from 2.
_FIRST_POSITION = 2


def wait() -> None:
    """Wait until the GPU has done its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@cache
def model_of(checkpoint: Path, dtype: Any) -> Any:
    """Return transformers' model with scaled-dot-product attention, on the GPU if there is one."""
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    return load(checkpoint, attn_implementation="sdpa", dtype=dtype).to(DEVICE).eval()


def padded(model: Any, rows: Sequence[Int32Array]) -> Callable[[], Any]:
    """Return a call that scores rows in matrices of like lengths. It returns the logits, longest row first."""
    batches = [_matrix(group) for group in _groups(rows, lambda n_rows, longest: n_rows * longest)]

    def run() -> Any:
        with torch.inference_mode():
            return _together([model(input_ids=ids, attention_mask=mask).logits[:, 0] for ids, mask in batches])

    return run


def packed(model: "Packed", rows: Sequence[Int32Array]) -> Callable[[], Any]:
    """Return a call that scores rows one after the other in a sequence. It returns the logits, longest row first."""
    batches = [_sequence(group) for group in _groups(rows, None)]

    def run() -> Any:
        with torch.inference_mode():
            return _together([model(*batch) for batch in batches])

    return run


class Packed:
    """XLM-R over rows in one sequence, without padding, as text-embeddings-inference runs it.

    One call of flash attention takes all rows. The last layer computes keys and values for all tokens. It computes the
    rest for first tokens only, as rankrt does.
    """

    def __init__(self, model: Any, *, is_compiled: bool = False) -> None:
        embeddings = model.roberta.embeddings
        self._words, self._positions = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
        self._type, self._norm = embeddings.token_type_embeddings.weight[0], embeddings.LayerNorm
        self._layers, self._head = model.roberta.encoder.layer, model.classifier
        self._n_heads = model.config.num_attention_heads
        self._layer = torch.compile(self._compute, dynamic=True) if is_compiled else self._compute

    def __call__(self, ids: Any, positions: Any, offsets: Any, longest: int) -> Any:
        """Return the logits of rows, (n_rows,). Ids and positions are (n_tokens,), offsets (n_rows + 1,)."""
        words = functional.embedding(ids, self._words)
        states = self._norm(words + functional.embedding(positions + _FIRST_POSITION, self._positions) + self._type)
        for layer in self._layers[:-1]:
            states = self._layer(layer, states, offsets, longest, None)
        first = self._layer(self._layers[-1], states, offsets, longest, offsets[:-1].long())
        return self._head.out_proj(torch.tanh(self._head.dense(first)))[:, 0]

    def _compute(self, layer: Any, states: Any, offsets: Any, longest: int, asked: Any) -> Any:
        own, after = layer.attention.self, layer.attention.output
        q, k, v = (part(states).view(len(states), self._n_heads, -1) for part in (own.query, own.key, own.value))
        attended = attend(q, k, v, offsets, longest).reshape(len(states), -1)
        if asked is not None:
            attended, states = attended[asked], states[asked]
        states = after.LayerNorm(after.dense(attended) + states)
        inner = functional.gelu(layer.intermediate.dense(states))
        return layer.output.LayerNorm(layer.output.dense(inner) + states)


def attend(q: Any, k: Any, v: Any, offsets: Any, longest: int) -> Any:
    """Return attention within each row. A GPU takes all rows in one call of flash attention, a CPU row by row."""
    if q.is_cuda:
        flash = torch.ops.aten._flash_attention_forward
        return flash(q, k, v, offsets, offsets, longest, longest, 0.0, False, False)[0]
    return torch.cat(
        [
            functional.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
            for a, b in pairwise(offsets.tolist())
        ]
    )


def _groups(rows: Sequence[Int32Array], n_places: Callable[[int, int], int] | None) -> list[list[Int32Array]]:
    """Divide rows, the longest first, into calls of at most RUN_TOKENS. With `n_places`, padding counts as well."""
    groups: list[list[Int32Array]] = [[]]
    for row in sorted(rows, key=len, reverse=True):
        group = groups[-1]
        taken = sum(map(len, group)) + len(row)
        if n_places is not None:
            taken = n_places(len(group) + 1, len((group or [row])[0]))
        if group and taken > RUN_TOKENS:
            groups.append([])
        groups[-1].append(row)
    return groups


def _matrix(rows: Sequence[Int32Array]) -> tuple[Any, Any]:
    ids = torch.full((len(rows), len(rows[0])), _PAD, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
    return ids.to(DEVICE), (ids != _PAD).long().to(DEVICE)


def _sequence(rows: Sequence[Int32Array]) -> tuple[Any, Any, Any, int]:
    lengths = [len(row) for row in rows]
    ids = torch.from_numpy(np.concatenate(rows)).long().to(DEVICE)
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(DEVICE)
    offsets = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=DEVICE)
    return ids, positions, offsets, max(lengths)


def _together(logits: Sequence[Any]) -> Any:
    """Return logits on the host. Waits for the GPU."""
    return torch.cat(list(logits)).float().cpu().numpy()
