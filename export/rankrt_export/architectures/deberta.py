"""DeBERTa-v2 and -v3 with a classification head (mxbai-rerank-v1): attention that sees contents and distances apart.

Follows transformers' DebertaV2ForSequenceClassification. A post-norm encoder, like BERT's; but to the score of a query
and a key each of the two adds its product with a vector of their distance. Far distances share a vector. The vectors
are the same for every row, so what the layers make of them is computed at export. The head reads the first token of the
last layer, so that layer computes keys and values for all tokens, and everything else for one.

In the shape of DeBERTa-v3-base one thread took 0.84 of the traced graph's processor time for four rows of 100 tokens,
and 1.0 for one of 400. int8 took 0.39 and 0.61.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array, Int64Array
from rankrt_export.architectures.heads import score
from rankrt_export.checkpoint.head import Dense, Head
from rankrt_export.checkpoint.weights import Weights, read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Section
from rankrt_export.graph.graph import DistanceTables, Graph, RelativeOperators
from rankrt_export.targets import RELATIVE_TARGETS

CLASSES = ("DebertaV2ForSequenceClassification",)
_KINDS = ("c2p", "p2c")
# What may be set otherwise, and the only value that is implemented.
_ONLY: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "pooler_hidden_act": "gelu",
    "relative_attention": True,
    "conv_kernel_size": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graph.

    kinds           "c2p" if queries see the distance of a key, "p2c" if keys see the distance of a query
    is_shared       distances pass the layers of queries and keys, and not layers of their own
    has_norm        vectors of distances are normalised first
    has_positions   vectors of places are added to those of words
    n_buckets       how many vectors there are for the distances to either side; 0 for one for each distance
    max_distance    where the last bucket ends
    """

    n_layers: int
    n_heads: int
    epsilon: float
    kinds: Sequence[str]
    is_shared: bool
    has_norm: bool
    has_positions: bool
    n_buckets: int
    max_distance: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        for name, known in _ONLY.items():
            # transformers' default of relative_attention is False, and so is what a missing field means.
            if (found := config.get(name, False if known is True else known)) != known:
                raise CheckpointError(
                    f"config.json has {name} = {found!r}; only {known!r} is implemented for this family"
                )
        kinds = config.get("pos_att_type", [])
        kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
        if not kinds or not set(kinds) <= set(_KINDS):
            raise CheckpointError(
                f"config.json has pos_att_type = {kinds!r}; only 'c2p', 'p2c' and both are implemented for this family"
            )
        farthest = int(config.get("max_relative_positions", -1))
        return cls(
            n_layers=int(config["num_hidden_layers"]),
            n_heads=int(config["num_attention_heads"]),
            epsilon=float(config.get("layer_norm_eps", 1e-7)),
            kinds=kinds,
            is_shared=bool(config.get("share_att_key", False)),
            has_norm="layer_norm" in str(config.get("norm_rel_ebd", "none")).lower(),
            has_positions=bool(config.get("position_biased_input", True)),
            n_buckets=max(0, int(config.get("position_buckets", -1))),
            max_distance=int(config["max_position_embeddings"]) if farthest < 1 else farthest,
        )

    @property
    def span(self) -> int:
        """How many vectors there are for the distances to either side."""
        return self.n_buckets or self.max_distance


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return one graph, whose output are the logits, (n_rows,)."""
    graph, shape = blueprint.new_graph(), Config.read(blueprint.config)
    operators = RELATIVE_TARGETS[blueprint.operators](graph)
    model = _Encoder(graph, operators, shape, blueprint.max_length)
    first = model.first_tokens(has_token_types=blueprint.has_token_types)
    logits = score(graph, classifier_head(blueprint.weights), graph.as_float32(first))
    return [Section(graph=graph, layout=operators.layout, outputs={"logits": logits})]


def classifier_head(weights: Weights) -> Head:
    """Return the pooler and the classifier."""
    pooler, classifier = (
        (read(weights, f"{name}.weight"), read(weights, f"{name}.bias")) for name in ("pooler.dense", "classifier")
    )
    return Head(
        pooling="cls",
        layers=[
            Dense(weight=pooler[0], bias=pooler[1], activation="gelu"),
            Dense(weight=classifier[0], bias=classifier[1]),
        ],
    )


def buckets(n_positions: int, *, n_buckets: int, max_distance: int) -> Int64Array:
    """Return for each distance, from 1 - n_positions to n_positions - 1, the place of its vector in the table.

    Up to half of `n_buckets` away each distance has its own; farther ones share, by their logarithm in float32.
    """
    distances = np.arange(1 - n_positions, n_positions)
    span = n_buckets or max_distance
    if not n_buckets:
        return np.asarray(np.clip(distances + span, 0, 2 * span - 1))
    middle = n_buckets // 2
    far = np.maximum(np.abs(distances), middle).astype(np.float32)
    whole = np.log(np.float32((max_distance - 1) / middle))
    shares = np.log(far / np.float32(middle)) / whole
    shared = np.ceil(shares * np.float32(middle - 1)).astype(np.int64) + middle
    found = np.where(np.abs(distances) <= middle, distances, shared * np.sign(distances))
    return np.asarray(np.clip(found + span, 0, 2 * span - 1))


class _Encoder:
    """The layers of an encoder, written into one graph."""

    def __init__(self, graph: Graph, operators: RelativeOperators, shape: Config, max_length: int) -> None:
        self._graph = graph
        self._operators = operators
        self._shape = shape
        self._buckets = buckets(max_length, n_buckets=shape.n_buckets, max_distance=shape.max_distance)
        self._distances = _distance_vectors(graph.weights, shape)

    def first_tokens(self, *, has_token_types: bool) -> ir.Value:
        """Return what the last layer makes of each row's first token, (n_rows, n_features)."""
        hidden = self.embeddings(has_token_types=has_token_types)
        for layer in range(self._shape.n_layers - 1):
            hidden = self.layer(layer, queries=hidden, hidden=hidden)
        first, last = self._operators.first_tokens(hidden), self._shape.n_layers - 1
        return self.layer(last, queries=first, hidden=hidden, first_only=True)

    def embeddings(self, *, has_token_types: bool) -> ir.Value:
        """Return the normalised sums of what is known of each token, projected where they are narrower than states."""
        graph, name = self._graph, "deberta.embeddings"
        hidden = graph.embedding(self._operators.ids, f"{name}.word_embeddings.weight")
        if self._shape.has_positions:
            table = read(graph.weights, f"{name}.position_embeddings.weight")
            hidden = graph.op("Add", hidden, self._operators.positions(table, f"{name}.positions"))
        if has_token_types:
            types = read(graph.weights, f"{name}.token_type_embeddings.weight")
            hidden = graph.op("Add", hidden, self._operators.token_types(types, f"{name}.types"))
        elif f"{name}.token_type_embeddings.weight" in graph.weights.names:
            type_0 = read(graph.weights, f"{name}.token_type_embeddings.weight")[0]
            hidden = graph.op("Add", hidden, graph.array(f"{name}.type_0", type_0, graph.states))
        if f"{name}.embed_proj.weight" in graph.weights.names:
            hidden = graph.product(hidden, f"{name}.embed_proj")
        normal = graph.layer_norm(graph.as_float32(hidden), f"{name}.LayerNorm", self._shape.epsilon)
        return graph.as_states(normal)

    def layer(self, layer: int, *, queries: ir.Value, hidden: ir.Value, first_only: bool = False) -> ir.Value:
        """Attend from `queries` to `hidden`, then the feed-forward, each with its residual and norm."""
        operators, epsilon, name = self._operators, self._shape.epsilon, f"deberta.encoder.layer.{layer}"
        attended = self._attention(f"{name}.attention.self", queries, hidden, first_only=first_only)
        attended = operators.linear_add_norm(
            attended, f"{name}.attention.output.dense", queries, f"{name}.attention.output.LayerNorm", epsilon
        )
        widened = operators.linear_gelu(attended, f"{name}.intermediate.dense")
        return operators.linear_add_norm(widened, f"{name}.output.dense", attended, f"{name}.output.LayerNorm", epsilon)

    def _attention(self, name: str, queries: ir.Value, hidden: ir.Value, *, first_only: bool) -> ir.Value:
        graph, shape = self._graph, self._shape
        query = graph.linear(queries, f"{name}.query_proj")
        key, value = (graph.linear(hidden, f"{name}.{part}_proj") for part in ("key", "value"))
        size = graph.weights.shape(f"{name}.query_proj.weight")[0] // shape.n_heads
        scale = 1 / math.sqrt(size * (1 + len(shape.kinds)))
        tables = DistanceTables(
            keys=self._table(f"{name}.{'' if shape.is_shared else 'pos_'}key_proj", "c2p", scale),
            queries=self._table(f"{name}.{'' if shape.is_shared else 'pos_'}query_proj", "p2c", scale),
            buckets=self._buckets,
            n_heads=shape.n_heads,
            name=f"{name}.distances",
        )
        return self._operators.relative_attention(query, key, value, tables, scale=scale, first_only=first_only)

    def _table(self, layer: str, kind: str, scale: float) -> Float32Array | None:
        """Return what a layer makes of the vectors of distances, scaled, (n_heads, 2 * span, size)."""
        if kind not in self._shape.kinds:
            return None
        weights = self._graph.weights
        made = self._distances @ read(weights, f"{layer}.weight").T + read(weights, f"{layer}.bias")
        by_head = (made * np.float32(scale)).reshape(len(made), self._shape.n_heads, -1)
        return np.ascontiguousarray(by_head.transpose(1, 0, 2))


def _distance_vectors(weights: Weights, shape: Config) -> Float32Array:
    """Return the vectors of distances, (2 * span, n_features), as every layer takes them."""
    vectors = read(weights, "deberta.encoder.rel_embeddings.weight")[: 2 * shape.span]
    if not shape.has_norm:
        return vectors
    centred = vectors - vectors.mean(axis=1, keepdims=True, dtype=np.float64)
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + shape.epsilon)
    scale, bias = (read(weights, f"deberta.encoder.LayerNorm.{part}") for part in ("weight", "bias"))
    return np.asarray(normal * scale + bias, np.float32)
