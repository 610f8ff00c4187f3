"""The operators of ONNX Runtime that graphs for CUDA use, in numpy, after their schemas (bert_defs.cc)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf, expit, softmax

Array = npt.NDArray[Any]


class PackedMultiHeadAttention(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """Attention from rows one behind the other, unpacked by token_offset, hidden by the cumulative lengths."""

    op_domain = "com.microsoft"

    def _run(
        self,
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None,
        token_offset: Array,
        cumulative_lengths: Array,
        attention_bias: Array | None = None,
        num_heads: int = 0,
        scale: float | None = None,
        mask_filter_value: float | None = None,
    ) -> tuple[Array]:
        assert bias is None
        assert attention_bias is None
        assert query.shape == key.shape == value.shape
        (n_rows, longest), (n_tokens, n_features) = token_offset.shape, query.shape
        assert cumulative_lengths.shape == (n_rows + 1,)
        assert sorted(token_offset.ravel().tolist()) == list(range(n_rows * longest))
        places = token_offset.ravel()[:n_tokens]

        def by_head(x: Array) -> Array:
            matrix = np.full((n_rows * longest, n_features), np.nan, np.float32)  # what is filled up must not be seen
            matrix[places] = x
            return matrix.reshape(n_rows, longest, num_heads, -1).transpose(0, 2, 1, 3)

        q, k, v = map(by_head, (query, key, value))
        is_there = np.arange(longest) < np.diff(cumulative_lengths)[:, None]
        scores = q @ k.swapaxes(2, 3) * (scale or (n_features // num_heads) ** -0.5)
        scores = np.where(is_there[:, None, None], scores, -np.inf)
        shares = softmax(scores, axis=-1)
        attended = np.where(is_there[:, None, None], shares, 0) @ np.where(is_there[:, None, :, None], v, 0)
        packed = attended.transpose(0, 2, 1, 3).reshape(-1, n_features)[places]
        return (packed.astype(query.dtype),)


class SkipLayerNormalization(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """The sum of two states, and of a bias if there is one, normalised in fp32."""

    op_domain = "com.microsoft"

    def _run(
        self, x: Array, skip: Array, gamma: Array, beta: Array, bias: Array | None = None, epsilon: float | None = None
    ) -> tuple[Array]:
        assert x.shape == skip.shape
        assert len({array.dtype for array in (x, skip, gamma, beta)}) == 1
        total = x.astype(np.float32) + skip.astype(np.float32)
        total = total if bias is None else total + bias.astype(np.float32)
        centred = total - total.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(epsilon or 0))
        return ((normal * gamma + beta).astype(x.dtype),)


class BiasGelu(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """The exact GELU of states and a bias, in fp32."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        assert x.dtype == bias.dtype
        total = x.astype(np.float32) + bias.astype(np.float32)
        return ((total * 0.5 * (1 + erf(total / np.float32(np.sqrt(2))))).astype(x.dtype),)


class FusedMatMul(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """A product with a matrix as it lies, (n_out, n_in)."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, weight: Array, transB: int = 0) -> tuple[Array]:
        assert transB == 1
        assert x.dtype == weight.dtype
        return ((x.astype(np.float32) @ weight.T.astype(np.float32)).astype(x.dtype),)


class MultiHeadAttention(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """Attention over a matrix of rows: causal, with nothing else hidden, or with what is added to scores."""

    op_domain = "com.microsoft"

    def _run(
        self,
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None = None,
        key_padding_mask: Array | None = None,
        attention_bias: Array | None = None,
        num_heads: int = 0,
        unidirectional: int = 0,
        scale: float | None = None,
    ) -> tuple[Array]:
        assert bias is None
        assert key_padding_mask is None
        assert unidirectional == (attention_bias is None)
        assert key.shape == value.shape
        n_rows, longest, n_features = query.shape

        def by_head(x: Array) -> Array:
            return x.astype(np.float32).reshape(n_rows, -1, num_heads, n_features // num_heads).transpose(0, 2, 1, 3)

        q, k, v = map(by_head, (query, key, value))
        scores = q @ k.swapaxes(2, 3) * (scale or (n_features // num_heads) ** -0.5)
        if attention_bias is None:
            assert query.shape == key.shape
            scores = np.where(np.tri(longest, dtype=bool), scores, -np.inf)
        else:
            assert attention_bias.dtype == query.dtype
            assert attention_bias.shape == (n_rows, 1, *scores.shape[2:])
            scores = scores + attention_bias.astype(np.float32)
        shares = softmax(scores, axis=-1)
        return ((shares @ v).transpose(0, 2, 1, 3).reshape(query.shape).astype(query.dtype),)


class RotaryEmbedding(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """The halves of each head turned by the angles of the token's place: counted from one position, or given."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: Array,
        position: Array,
        cosines: Array,
        sines: Array,
        num_heads: int = 0,
        interleaved: int | None = None,
        rotary_embedding_dim: int | None = None,
    ) -> tuple[Array]:
        assert not interleaved
        assert not rotary_embedding_dim
        assert x.dtype == cosines.dtype == sines.dtype
        n_rows, longest, _ = x.shape
        assert position.shape in ((1,), (n_rows, longest))
        assert position.dtype == np.int64
        places = position if position.ndim == 2 else position[0] + np.arange(longest)
        first, second = np.split(x.astype(np.float32).reshape(n_rows, longest, num_heads, -1), 2, axis=-1)
        cosine, sine = (table[places][..., None, :].astype(np.float32) for table in (cosines, sines))
        turned = np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
        return (turned.reshape(x.shape).astype(x.dtype),)


class SimplifiedLayerNormalization(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """Float32 by its root mean square, in the type of the scale."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, axis: int = 0, epsilon: float = 0.0, stash_type: int = 0) -> tuple[Array]:
        assert x.dtype == np.float32
        assert axis == -1
        normal = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
        return ((normal * scale).astype(scale.dtype),)


class QuickGelu(OpRun):  # type: ignore[misc]  # onnx is untyped to mypy here
    """x * sigmoid(alpha * x), in fp32."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, alpha: float = 0.0) -> tuple[Array]:
        wide = x.astype(np.float32)
        return ((wide * expit(np.float32(alpha) * wide)).astype(x.dtype),)


def evaluator(path: str) -> ReferenceEvaluator:
    """Return what computes a graph in numpy."""
    operators = [PackedMultiHeadAttention, SkipLayerNormalization, BiasGelu]
    causal = [FusedMatMul, MultiHeadAttention, RotaryEmbedding, SimplifiedLayerNormalization, QuickGelu]
    return ReferenceEvaluator(path, new_ops=operators + causal)
