"""ModernBERT with a head: its own classifier's, or what sentence-transformers puts after it (Ettin's rerankers).

Follows transformers' ModernBertModel: pre-norm layers with a gated GELU and rotary positions, which have one base in
layers that see the whole row and another in those that see a window around each token. Biases are added where the
weights have them. A head that reads the first token needs one token of the last layer after its attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from rankrt_export.architectures.heads import score
from rankrt_export.checkpoint.head import Dense, Head, Norm
from rankrt_export.checkpoint.weights import Weights, read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Section
from rankrt_export.graph.graph import Graph, RotaryOperators, RotaryTables
from rankrt_export.targets import ROTARY_TARGETS

# The second needs a head from elsewhere.
CLASSES = ("ModernBertForSequenceClassification", "ModernBertModel")
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graph.

    kinds  of each layer "full_attention" or "sliding_attention"
    bases  of the rotary positions of each kind
    reach  how far a token sees in either direction in a layer with a window
    """

    kinds: Sequence[str]
    bases: Mapping[str, float]
    reach: int
    n_features: int
    n_heads: int
    epsilon: float

    @property
    def head_size(self) -> int:
        """The features of each head."""
        return self.n_features // self.n_heads

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        if (activation := config.get("hidden_activation", "gelu")) != "gelu":
            raise CheckpointError(
                f"config.json has hidden_activation = {activation!r}; only 'gelu' is implemented for this family"
            )
        # transformers 5 writes layer_types and rope_parameters, 4 the fields after them.
        step = int(config.get("global_attn_every_n_layers", 3))
        every = [_LOCAL if i % step else _GLOBAL for i in range(int(config["num_hidden_layers"]))]
        kinds = config.get("layer_types", every)
        if len(kinds) != len(every) or not set(kinds) <= {_GLOBAL, _LOCAL}:
            raise CheckpointError(
                f"config.json has layer_types = {kinds!r}, expected {_GLOBAL!r} or {_LOCAL!r} for each of"
                f" {len(every)} layers"
            )
        return cls(
            kinds=kinds,
            bases={
                _GLOBAL: _base(config, _GLOBAL, "global_rope_theta", 160_000.0),
                _LOCAL: _base(config, _LOCAL, "local_rope_theta", 10_000.0),
            },
            reach=int(config.get("local_attention", 128)) // 2,
            n_features=int(config["hidden_size"]),
            n_heads=int(config["num_attention_heads"]),
            epsilon=float(config.get("norm_eps", 1e-5)),
        )


def _base(config: Mapping[str, Any], kind: str, older: str, default: float) -> float:
    parameters = config.get("rope_parameters", {}).get(kind) or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(f"config.json has rope_parameters.{kind} = {parameters!r}, expected an object")
    if (rope := parameters.get("rope_type", "default")) != "default":
        raise CheckpointError(
            f"config.json has rope_parameters.{kind}.rope_type = {rope!r}; only 'default' is implemented for this"
            " family"
        )
    return float(parameters.get("rope_theta") or config.get(older) or default)


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return one graph, whose output are the logits, (n_rows,), by the blueprint's head or the classifier's own."""
    graph = blueprint.new_graph()
    shape = Config.read(blueprint.config)
    operators = ROTARY_TARGETS[blueprint.operators](graph, shape.n_heads, shape.head_size)
    head = blueprint.head or classifier_head(blueprint.config, blueprint.weights)
    model = _Encoder(graph, operators, shape, blueprint.max_length)
    logits = score(graph, head, model.pooled(head))
    return [Section(graph=graph, layout=operators.layout, outputs={"logits": logits})]


def classifier_head(config: Mapping[str, Any], weights: Weights) -> Head:
    """Return the head of a ModernBertForSequenceClassification."""
    pooling, activation = config.get("classifier_pooling", "cls"), config.get("classifier_activation", "gelu")
    if pooling not in ("cls", "mean") or activation != "gelu":
        raise CheckpointError(
            f"config.json has classifier_pooling = {pooling!r} and classifier_activation = {activation!r}; only 'cls'"
            " and 'mean', and 'gelu', are implemented for this family"
        )

    def vector(name: str) -> Any:
        return read(weights, name) if name in weights.names else None

    dense = Dense(weight=read(weights, "head.dense.weight"), bias=vector("head.dense.bias"), activation="gelu")
    norm = Norm(
        scale=read(weights, "head.norm.weight"),
        bias=vector("head.norm.bias"),
        epsilon=float(config.get("norm_eps", 1e-5)),
    )
    last = Dense(weight=read(weights, "classifier.weight"), bias=vector("classifier.bias"))
    return Head(pooling=pooling, layers=[dense, norm, last])


class _Encoder:
    """The layers of an encoder, written into one graph."""

    def __init__(self, graph: Graph, operators: RotaryOperators, shape: Config, max_length: int) -> None:
        self._graph = graph
        self._operators = operators
        self._shape = shape
        # Inside a classifier the encoder's weights have a name before theirs; saved alone they have none.
        self._root = "model." if "model.final_norm.weight" in graph.weights.names else ""
        self._tables = {
            kind: RotaryTables.of(max_length, shape.head_size, base, f"rope.{kind}")
            for kind, base in shape.bases.items()
        }

    def pooled(self, head: Head) -> ir.Value:
        """Return what a head reads of each row, (n_rows, n_features), in float32."""
        hidden, n_layers = self.embeddings(), len(self._shape.kinds)
        for layer in range(n_layers):
            hidden = self.layer(layer, hidden, first_only=head.pooling == "cls" and layer == n_layers - 1)
        hidden = self._graph.layer_norm(hidden, f"{self._root}final_norm", self._shape.epsilon)
        return hidden if head.pooling == "cls" else self._operators.means(hidden)

    def embeddings(self) -> ir.Value:
        """Return the normalised vectors of the tokens, in float32."""
        words = self._graph.embedding(self._operators.ids, f"{self._root}embeddings.tok_embeddings.weight")
        return self._graph.layer_norm(
            self._graph.as_float32(words), f"{self._root}embeddings.norm", self._shape.epsilon
        )

    def layer(self, layer: int, hidden: ir.Value, *, first_only: bool) -> ir.Value:
        """Return the sum of the layers up to this one, in float32, of all tokens or of each row's first."""
        graph, name = self._graph, f"{self._root}layers.{layer}"
        # The embeddings are normalised already.
        normal = self._norm(hidden, f"{name}.attn_norm") if layer else graph.as_states(hidden)
        attended = self._attention(f"{name}.attn", normal, self._shape.kinds[layer], first_only=first_only)
        hidden = self._operators.first_tokens(hidden) if first_only else hidden
        hidden = graph.op("Add", hidden, graph.as_float32(attended))
        widened = self._linear(self._norm(hidden, f"{name}.mlp_norm"), f"{name}.mlp.Wi")
        half = graph.weights.shape(f"{name}.mlp.Wo.weight")[1]
        inner, gate = (self._part(widened, i, half) for i in (0, 1))
        narrowed = self._linear(graph.op("Mul", graph.op("Gelu", inner), gate), f"{name}.mlp.Wo")
        return graph.op("Add", hidden, graph.as_float32(narrowed))

    def _attention(self, name: str, hidden: ir.Value, kind: str, *, first_only: bool) -> ir.Value:
        shape, operators = self._shape, self._operators
        joined = self._linear(hidden, f"{name}.Wqkv")
        query, key, value = (self._part(joined, i, shape.n_features) for i in (0, 1, 2))
        query, key = (operators.rotated(x, self._tables[kind]) for x in (query, key))
        reach = shape.reach if kind == _LOCAL else None
        attended = operators.attention(query, key, value, reach=reach, first_only=first_only)
        return self._linear(attended, f"{name}.Wo")

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        has_bias = f"{name}.bias" in self._graph.weights.names
        return self._graph.linear(x, name) if has_bias else self._graph.product(x, name)

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        """Normalise float32; return states."""
        return self._graph.as_states(self._graph.layer_norm(x, name, self._shape.epsilon))

    def _part(self, x: ir.Value, i: int, size: int) -> ir.Value:
        """Return one of the parts of equal size that the features consist of."""
        ints = self._graph.ints
        return self._graph.op("Slice", x, ints(i * size), ints((i + 1) * size), ints(-1))
