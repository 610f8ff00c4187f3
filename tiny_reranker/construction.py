"""Weights that match words before any training: an XLM-RoBERTa whose six attention heads have given jobs.

Random weights of this size hardly learn to match words. Their loss stayed at chance (ln 4 with four passages) for as
long as the whole fine-tuning takes. Built by hand, the same network ranks from the first step, and fine-tuning improves
it. The jobs are:

    layer  head 0                                           head 1
    0      which side of the separator am I on? -> SIDE     copies the code of the piece before -> PREVIOUS
    1      is my piece on the other side too? -> MATCHED    ... with the same piece before it? -> MATCHED_PAIR
    2      <s> averages both flags over the query ...       ... and over the passage, rare pieces first -> POOLED

The classifier adds the four averages. All this happens in the features of a hidden state, which have names below. A
head's scores are sums of terms (a query feature times a key feature). Their scale is so large that the softmax chooses
one piece. A piece without a match attends to <s>, whose value is zero.

Knows no training. The rest of the network, such as the feed-forward layers, starts as little noise.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from rankrt.arrays import Int64Array
from tiny_reranker.batches import Batch
from tiny_reranker.vocabulary import END_ID, PAD_ID, SPACE, SPECIAL, START_ID, Float64Array, piece_names, rarities

N_FEATURES, N_LAYERS, N_HEADS, N_INNER = 128, 3, 2, 256
HEAD_SIZE = N_FEATURES // N_HEADS
N_POSITIONS = 512
# XLM-RoBERTa counts positions from the padding's id + 1.
FIRST_POSITION = PAD_ID + 1

# The features of a hidden state. Two features carry one number with both signs, because LayerNorm removes the mean.
CODE = slice(0, 56)  # the code of the piece
PREVIOUS = slice(56, 96)  # the code of the piece before, projected
WAVES = slice(96, 114)  # the position: cosine and sine of 9 frequencies
LOG_POSITION = slice(114, 116)  # the position, monotonic
IS_START, IS_SEPARATOR = 116, 117
RARITY = slice(118, 120)
SIDE = slice(120, 122)  # + in the passage, - in the query
MATCHED, MATCHED_PAIR = 122, 123
POOLED = slice(124, 128)  # of <s>: MATCHED and MATCHED_PAIR over the query, then over the passage

N_CODE, N_PREVIOUS, N_WAVES = 56, 40, 9

# Squared lengths before the first LayerNorm. All pieces have the same length, and all positions. So LayerNorm scales
# all alike, and a code keeps its length at every position.
_PIECE_NORM2, _WAVE_AMPLITUDE, _LOG_POSITION_NORM2 = 49.0, 1.6, 8.0
_EMBEDDING_NORM2 = _PIECE_NORM2 + N_WAVES * _WAVE_AMPLITUDE**2 + _LOG_POSITION_NORM2

# Attention scores in units of the softmax's exponent. Among 250 pieces, the codes of two unrelated ones overlap by up
# to about a third of a match. So matches (16 + 10) win over no match (20.5), and no match wins over chance (5 + 10).
_MATCH, _OTHER_SIDE, _NO_MATCH = 16.0, 10.0, 20.5
_SEPARATORS, _BEFORE, _STEP = 14.0, 100.0, 14.0
_POOLED_SIDE, _POOLED_SPECIAL = 5.0, 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The vocabulary's facts for the construction: names, and the frequency of each in the training texts."""

    names: Sequence[str]
    counts: Int64Array

    @classmethod
    def of(cls, tokenizer: Tokenizer, counts: Int64Array) -> "Pieces":
        """Take the names from a tokenizer."""
        return cls(names=piece_names(tokenizer), counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Views of one attention head's weights. Writing to them writes to the layer.

    query, key, value                 (HEAD_SIZE, N_FEATURES)
    query_bias, value_bias            (HEAD_SIZE,); the key's changes no softmax
    output                            (N_FEATURES, HEAD_SIZE)
    output_bias                       (N_FEATURES,), shared with the layer's other head
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    query_bias: torch.Tensor
    value_bias: torch.Tensor
    output_bias: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The sizes of features after a layer, measured on real rows. LayerNorm's scale follows from all of them.

    code2, previous2    mean squared length of CODE and PREVIOUS over the pieces
    side, rarity        mean of |SIDE| and standard deviation of RARITY over the pieces
    start, start_side   mean of IS_START and of SIDE at <s>
    separator           mean of IS_SEPARATOR at </s>
    """

    code2: float
    previous2: float
    side: float
    rarity: float
    start: float
    start_side: float
    separator: float


def construct(pieces: Pieces, example: Batch, seed: int = 0) -> Any:
    """Return an XLMRobertaForSequenceClassification with constructed weights; levels are measured on an example."""
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)
    model = XLMRobertaForSequenceClassification(config(len(pieces.names))).eval()
    with torch.no_grad():
        _fill_with_noise(model)
        frequencies = _frequencies(random)
        _set_embeddings(model.roberta.embeddings, pieces, frequencies, random)
        first, second, third = model.roberta.encoder.layer
        _tell_sides(head(first, 0))
        _copy_previous(head(first, 1), frequencies, _projection(N_CODE, N_PREVIOUS, random))
        levels = _measure(model, example, n_layers=1)
        _match_pieces(head(second, 0), levels)
        _match_pairs(head(second, 1), levels, random)
        levels = _measure(model, example, n_layers=2)
        for i, sign in enumerate((-1.0, 1.0)):
            _pool(head(third, i), levels, sign, POOLED.start + 2 * i)
        _read_out(model, example)
    return model


def config(n_pieces: int) -> XLMRobertaConfig:
    """Return the configuration: 3 layers of 2 heads, 128 features, 512 positions, one label, no dropout."""
    return XLMRobertaConfig(
        vocab_size=n_pieces,
        hidden_size=N_FEATURES,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=N_INNER,
        max_position_embeddings=FIRST_POSITION + N_POSITIONS,
        type_vocab_size=1,
        num_labels=1,
        bos_token_id=START_ID,
        pad_token_id=PAD_ID,
        eos_token_id=END_ID,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
    )


def head(layer: Any, index: int) -> Head:
    """Return the views of one head of a layer."""
    attention, output = layer.attention.self, layer.attention.output.dense
    rows = slice(index * HEAD_SIZE, (index + 1) * HEAD_SIZE)
    return Head(
        query=attention.query.weight[rows],
        key=attention.key.weight[rows],
        value=attention.value.weight[rows],
        output=output.weight[:, rows],
        query_bias=attention.query.bias[rows],
        value_bias=attention.value.bias[rows],
        output_bias=output.bias,
    )


# Embeddings.


def piece_codes(names: Sequence[str], random: np.random.RandomState) -> Float64Array:
    """Return a unit vector for each piece, (n_pieces, N_CODE); similar pieces have similar vectors.

    A piece of 4 characters or more shares half of it with pieces of the same character 2- and 3-grams (inflected
    forms). A piece at the start of a word shares most of it with the same piece inside one. Special tokens have zeros.
    """
    codes = _unit(random.randn(len(names), N_CODE))
    for i, name in enumerate(names[len(SPECIAL) :], len(SPECIAL)):
        if len(name.replace(SPACE, "")) >= 4:
            codes[i] = 0.5 * codes[i] + 0.5 * _unit(sum(map(_ngram_code, _ngrams(name))))
    inside = {name: i for i, name in enumerate(names)}
    for i, name in enumerate(names):
        if name.startswith(SPACE) and name[1:] in inside:
            codes[i] = 0.75 * _unit(codes[inside[name[1:]]]) + 0.45 * _unit(codes[i])
    codes = _unit(codes - codes.mean(axis=1, keepdims=True))
    codes[: len(SPECIAL)] = 0
    return codes


def _set_embeddings(embeddings: Any, pieces: Pieces, frequencies: Float64Array, random: np.random.RandomState) -> None:
    embeddings.word_embeddings.weight.copy_(_tensor(_piece_embeddings(pieces, random)))
    embeddings.position_embeddings.weight.copy_(_tensor(_position_embeddings(frequencies)))
    embeddings.token_type_embeddings.weight.zero_()


def _piece_embeddings(pieces: Pieces, random: np.random.RandomState) -> Float64Array:
    rarity = rarities(pieces.counts)
    rows = np.zeros((len(pieces.names), N_FEATURES))
    rows[:, CODE] = piece_codes(pieces.names, random) * np.sqrt(_PIECE_NORM2 - 2 * rarity**2)[:, None]
    rows[:, RARITY] = np.stack([rarity, -rarity], axis=1)
    rows[START_ID, IS_START] = rows[END_ID, IS_SEPARATOR] = math.sqrt(_PIECE_NORM2)
    return rows


def _position_embeddings(frequencies: Float64Array) -> Float64Array:
    positions = np.arange(N_POSITIONS)
    logs = _log_positions(positions)
    rows = np.zeros((FIRST_POSITION + N_POSITIONS, N_FEATURES))
    angles = np.outer(positions, frequencies)
    amplitudes = np.sqrt((N_WAVES * _WAVE_AMPLITUDE**2 + _LOG_POSITION_NORM2 - 2 * logs**2) / N_WAVES)
    waves = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(N_POSITIONS, 2 * N_WAVES)
    rows[FIRST_POSITION:, WAVES] = waves * amplitudes[:, None]
    rows[FIRST_POSITION:, LOG_POSITION] = np.stack([logs, -logs], axis=1)
    return rows


def _log_positions(positions: Int64Array) -> Float64Array:
    """Return values from 0 to 2; the steps shrink with the position but never vanish."""
    logs: Float64Array = np.log1p(positions / 8)
    logs *= 2 / logs[-1]
    return logs


def _frequencies(random: np.random.RandomState) -> Float64Array:
    """Return the best 9 frequencies of 400 random draws: they distinguish a position best from all others."""

    def confusion(frequencies: Float64Array) -> float:
        far = np.abs(np.cos(np.outer(np.arange(2, N_POSITIONS + 1), frequencies)).mean(axis=1)).max()
        return float(max(far, np.cos(frequencies).mean() + 0.1))

    return min((np.sort(random.uniform(0.05, 3.0, N_WAVES)) for _ in range(400)), key=confusion)


# Layer 0.


def _tell_sides(head: Head) -> None:
    """Attend to <s>, or to a </s> before the piece if there is one; write which to SIDE."""
    special = math.sqrt(_PIECE_NORM2) * _embedding_scale()
    per_log = 0.5 / _embedding_scale()  # LOG_POSITION holds the number twice
    _add_constant_term(head, 0, [IS_START, IS_SEPARATOR], _SEPARATORS / special)
    # (my position - its position) for a separator: above 0 if it comes before.
    position = _signed(LOG_POSITION, per_log)
    head.query[1] += position
    head.key[1, IS_SEPARATOR] = _BEFORE * math.sqrt(HEAD_SIZE) / special
    head.query_bias[2] = 1
    head.key[2] -= position * _BEFORE * math.sqrt(HEAD_SIZE)
    head.value[0, IS_SEPARATOR] = 1 / special
    head.output[SIDE, 0] = torch.tensor([6.0, -6.0])
    head.output_bias[SIDE] = torch.tensor([-3.0, 3.0])


def _copy_previous(head: Head, frequencies: Float64Array, projection: torch.Tensor) -> None:
    """Attend to the position before (the waves, rotated by one step) and write its code, projected, to PREVIOUS."""
    norm2 = N_WAVES * (_WAVE_AMPLITUDE * _embedding_scale()) ** 2
    for i, frequency in enumerate(frequencies):
        cosine, sine = math.cos(frequency), math.sin(frequency)
        turn = torch.tensor([[cosine, sine], [-sine, cosine]])
        wave = slice(WAVES.start + 2 * i, WAVES.start + 2 * i + 2)
        head.query[2 * i : 2 * i + 2, wave] = turn * (_STEP * math.sqrt(HEAD_SIZE) / norm2)
        head.key[2 * i : 2 * i + 2, wave] = torch.eye(2)
    head.value[:N_CODE, CODE] = torch.eye(N_CODE)
    head.output[PREVIOUS, :N_CODE] = 0.9 * projection


# Layer 1.


def _match_pieces(head: Head, levels: Levels) -> None:
    """Attend to the same piece on the other side, or to <s>; write which to MATCHED."""
    head.query[:N_CODE, CODE] = torch.eye(N_CODE) * (_MATCH * math.sqrt(HEAD_SIZE) / levels.code2)
    head.key[:N_CODE, CODE] = torch.eye(N_CODE)
    _prefer_other_side(head, N_CODE, levels)
    _write_flag(head, MATCHED, levels)


def _match_pairs(head: Head, levels: Levels, random: np.random.RandomState) -> None:
    """Attend to the same two pieces in a row on the other side, or to <s>; write which to MATCHED_PAIR.

    A head has 64 numbers, so both codes are projected to 28. Each has half of the match.
    """
    scale, size = _MATCH / 2 * math.sqrt(HEAD_SIZE), N_CODE // 2
    for start, (codes, norm2) in zip((0, size), ((CODE, levels.code2), (PREVIOUS, levels.previous2)), strict=True):
        n_codes, rows = codes.stop - codes.start, slice(start, start + size)
        projection = _projection(n_codes, size, random)
        head.query[rows, codes] = projection * (scale / norm2 * N_CODE / size)
        head.key[rows, codes] = projection
    _prefer_other_side(head, N_CODE, levels)
    _write_flag(head, MATCHED_PAIR, levels)


def _prefer_other_side(head: Head, row: int, levels: Levels) -> None:
    """Add to the scores of the other side, subtract from its own, and give <s> the score that a match must exceed."""
    head.query[row, SIDE.start] = -_OTHER_SIDE * math.sqrt(HEAD_SIZE) / levels.side**2
    head.key[row, SIDE.start] = 1
    head.key[row, IS_START] = -levels.start_side / levels.start  # <s> has no side
    _add_constant_term(head, row + 1, [IS_START], _NO_MATCH / levels.start)


def _write_flag(head: Head, feature: int, levels: Levels) -> None:
    """Write 2 for a match and -2 for <s>."""
    head.value_bias[0] = 1
    head.value[0, IS_START] = -1 / levels.start
    head.output[feature, 0] = 4
    head.output_bias[feature] = -2


# Layer 2 and the classifier.


def _pool(head: Head, levels: Levels, sign: float, feature: int) -> None:
    """Average both flags over one side (-1 query, 1 passage) into two features, with more weight for rare pieces."""
    per_score = math.sqrt(HEAD_SIZE)
    head.query_bias[0] = 1
    head.key[0, SIDE.start] = sign * _POOLED_SIDE * per_score / levels.side
    head.key[0, RARITY.start] = per_score / levels.rarity
    head.key[0, IS_START] = -_POOLED_SPECIAL * per_score / levels.start
    head.key[0, IS_SEPARATOR] = -_POOLED_SPECIAL * per_score / levels.separator
    head.value[0, MATCHED] = head.value[1, MATCHED_PAIR] = 1
    head.output[feature, 0] = head.output[feature + 1, 1] = 2


def _read_out(model: Any, example: Batch) -> None:
    """Standardise the four averages and add them, the query's with six times the weight of the passage's."""
    pooled = _hidden_states(model, example)[N_LAYERS][:, 0, POOLED]
    means, deviations = pooled.mean(0), pooled.std(0)
    dense, out = model.classifier.dense, model.classifier.out_proj
    rows = slice(0, len(means))
    dense.weight[rows] = 0
    dense.weight[rows, POOLED] = torch.diag(0.4 / deviations)
    dense.bias[rows] = -0.4 * means / deviations
    out.weight[0, rows] = torch.tensor([3.0, 3.0, 0.5, 0.5])


# Parts of the above.


def _fill_with_noise(model: Any) -> None:
    """Fill every product with little noise and no bias. It can learn and does not disturb."""
    for layer in model.roberta.encoder.layer:
        attention = layer.attention.self
        for linear in (attention.query, attention.key, attention.value, layer.attention.output.dense):
            _set_noise(linear, 0.01)
        _set_noise(layer.intermediate.dense, 0.02)
        _set_noise(layer.output.dense, 0.01)
    _set_noise(model.classifier.dense, 0.02)
    _set_noise(model.classifier.out_proj, 0.02)


def _set_noise(linear: Any, deviation: float) -> None:
    linear.weight.normal_(0, deviation)
    linear.bias.zero_()


def _add_constant_term(head: Head, row: int, features: Sequence[int], score: float) -> None:
    """Give keys a score for each unit of these features, the same for all queries."""
    head.query_bias[row] = 1
    head.key[row, list(features)] = score * math.sqrt(HEAD_SIZE)


def _signed(features: slice, scale: float) -> torch.Tensor:
    """Return a row, (N_FEATURES,), that reads a number from its two features of both signs."""
    row = torch.zeros(N_FEATURES)
    row[features] = torch.tensor([scale, -scale])
    return row


def _projection(n_from: int, n_to: int, random: np.random.RandomState) -> torch.Tensor:
    """Return n_to orthonormal rows, (n_to, n_from), which keep angles as well as possible."""
    return _tensor(np.linalg.qr(random.randn(n_from, n_from))[0][:n_to])


def _embedding_scale() -> float:
    """Return the factor of the first LayerNorm."""
    return math.sqrt(N_FEATURES / _EMBEDDING_NORM2)


def _measure(model: Any, example: Batch, *, n_layers: int) -> Levels:
    hidden = _hidden_states(model, example)[n_layers]
    pieces, start = hidden[example.ids >= len(SPECIAL)], hidden[:, 0]
    return Levels(
        code2=float((pieces[:, CODE] ** 2).sum(1).mean()),
        previous2=float((pieces[:, PREVIOUS] ** 2).sum(1).mean()),
        side=float(pieces[:, SIDE.start].abs().mean()),
        rarity=float(pieces[:, RARITY.start].std()),
        start=float(start[:, IS_START].mean()),
        start_side=float(start[:, SIDE.start].mean()),
        separator=float(hidden[example.ids == END_ID][:, IS_SEPARATOR].mean()),
    )


def _hidden_states(model: Any, example: Batch) -> Any:
    """Return the states after the embeddings and after each layer, (n_rows, n_tokens, N_FEATURES) each."""
    return model.roberta(example.ids, attention_mask=example.mask, output_hidden_states=True).hidden_states


def _ngrams(name: str) -> list[str]:
    """Return the 2- and 3-grams of a piece with its ends marked."""
    marked = f"^{name.replace(SPACE, '')}$"
    return [marked[i : i + n] for n in (2, 3) for i in range(len(marked) - n + 1)]


@cache
def _ngram_code(ngram: str) -> Float64Array:
    """Return the random vector of an n-gram. A checksum seeds it, because hash() differs between processes."""
    return np.random.RandomState(zlib.crc32(ngram.encode())).randn(N_CODE)


def _unit(vectors: Any) -> Float64Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float64)


def _tensor(array: Float64Array) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)
