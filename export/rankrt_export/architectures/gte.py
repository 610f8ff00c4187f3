"""GTE with a classification head (gte-multilingual-reranker): BERT with rotary positions and a gated feed-forward.

Follows transformers' GteForSequenceClassification. Norms come after the sums, the feed-forward has a GELU gate, and the
head reads the first token, through BERT's pooler. So what follows the last layer's attention is computed for one token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from rankrt_export.architectures.heads import score
from rankrt_export.checkpoint.head import Dense, Head
from rankrt_export.checkpoint.weights import Weights, read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Section
from rankrt_export.graph.graph import Graph, RotaryOperators, RotaryTables
from rankrt_export.targets import ROTARY_TARGETS

CLASSES = ("GteForSequenceClassification",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graph.

    rope_base, rope_factor  the base of the rotary positions, and what all their frequencies are divided by
    """

    n_layers: int
    n_heads: int
    head_size: int
    epsilon: float
    rope_base: float
    rope_factor: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        if (activation := config.get("hidden_act", "gelu")) != "gelu":
            raise CheckpointError(
                f"config.json has hidden_act = {activation!r}; only 'gelu' is implemented for this family"
            )
        n_features, n_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        if n_features % (2 * n_heads):
            raise CheckpointError(
                f"config.json has hidden_size = {n_features} and num_attention_heads = {n_heads}; a head needs an even"
                " number of features"
            )
        # transformers reads the older name first.
        field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        rope = config.get(field, {})
        kind, factor = rope.get("rope_type") or rope.get("type") or "default", rope.get("factor", 1.0)
        if kind not in ("default", "linear") or not isinstance(factor, int | float) or not factor > 0:
            raise CheckpointError(
                f"config.json has {field} = {rope!r}; only the types 'default' and 'linear', with a factor above 0, are"
                " implemented for this family"
            )
        return cls(
            n_layers=int(config["num_hidden_layers"]),
            n_heads=n_heads,
            head_size=n_features // n_heads,
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 160_000.0),
            rope_factor=float(factor) if kind == "linear" else 1.0,
        )


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return one graph, whose output are the logits, (n_rows,)."""
    graph, shape = blueprint.new_graph(), Config.read(blueprint.config)
    operators = ROTARY_TARGETS[blueprint.operators](graph, shape.n_heads, shape.head_size)
    model = _Encoder(graph, operators, shape, blueprint.max_length)
    first = model.first_tokens(has_token_types=blueprint.has_token_types)
    logits = score(graph, classifier_head(blueprint.weights), first)
    return [Section(graph=graph, layout=operators.layout, outputs={"logits": logits})]


def classifier_head(weights: Weights) -> Head:
    """Return the pooler and the classifier."""
    pooler, classifier = (
        Dense(weight=read(weights, f"{name}.weight"), bias=read(weights, f"{name}.bias"))
        for name in ("gte.pooler.dense", "classifier")
    )
    return Head(pooling="cls", layers=[replace(pooler, activation="tanh"), classifier])


class _Encoder:
    """The layers of an encoder, written into one graph. The sums of layers and their norms are float32."""

    def __init__(self, graph: Graph, operators: RotaryOperators, shape: Config, max_length: int) -> None:
        self._graph = graph
        self._operators = operators
        self._shape = shape
        self._tables = RotaryTables.of(max_length, shape.head_size, shape.rope_base, factor=shape.rope_factor)

    def first_tokens(self, *, has_token_types: bool) -> ir.Value:
        """Return what the last layer makes of each row's first token, (n_rows, n_features), in float32."""
        hidden, last = self.embeddings(has_token_types=has_token_types), self._shape.n_layers - 1
        for layer in range(self._shape.n_layers):
            hidden = self.layer(layer, hidden, first_only=layer == last)
        return hidden

    def embeddings(self, *, has_token_types: bool) -> ir.Value:
        """Return the normalised sums of word and type vectors, in float32; some models have no types."""
        graph, types = self._graph, "gte.embeddings.token_type_embeddings"
        hidden = graph.as_float32(graph.embedding(self._operators.ids, "gte.embeddings.word_embeddings.weight"))
        if has_token_types:
            of_tokens = self._operators.token_types(read(graph.weights, f"{types}.weight"), types)
            hidden = graph.op("Add", hidden, graph.as_float32(of_tokens))
        elif f"{types}.weight" in graph.weights.names:
            type_0 = read(graph.weights, f"{types}.weight")[0]
            hidden = graph.op("Add", hidden, graph.array(f"{types}.type_0", type_0))
        return graph.layer_norm(hidden, "gte.embeddings.LayerNorm", self._shape.epsilon)

    def layer(self, layer: int, hidden: ir.Value, *, first_only: bool) -> ir.Value:
        """Attend to the whole row, then the feed-forward, each with its sum and norm."""
        graph, name = self._graph, f"gte.layers.{layer}"
        attended = self._attention(f"{name}.self_attn", graph.as_states(hidden), first_only=first_only)
        hidden = self._operators.first_tokens(hidden) if first_only else hidden
        hidden = self._add_norm(hidden, attended, f"{name}.post_attention_layernorm")
        states = graph.as_states(hidden)
        gate = graph.gelu(graph.product(states, f"{name}.mlp.gate_proj"))
        widened = graph.op("Mul", gate, graph.product(states, f"{name}.mlp.up_proj"))
        narrowed = graph.linear(widened, f"{name}.mlp.down_proj")
        return self._add_norm(hidden, narrowed, f"{name}.post_mlp_layernorm")

    def _attention(self, name: str, states: ir.Value, *, first_only: bool) -> ir.Value:
        query, key, value = (self._graph.linear(states, f"{name}.{part}_proj") for part in "qkv")
        query, key = (self._operators.rotated(x, self._tables) for x in (query, key))
        attended = self._operators.attention(query, key, value, reach=None, first_only=first_only)
        return self._graph.linear(attended, f"{name}.o_proj")

    def _add_norm(self, hidden: ir.Value, x: ir.Value, norm: str) -> ir.Value:
        """Normalise the sum of float32 and states, in float32."""
        total = self._graph.op("Add", hidden, self._graph.as_float32(x))
        return self._graph.layer_norm(total, norm, self._shape.epsilon)
