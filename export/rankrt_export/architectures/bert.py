"""The BERT family with a classification head: BERT, RoBERTa and XLM-RoBERTa (the bge-rerankers), Electra, DistilBERT.

Follows transformers' ...ForSequenceClassification classes: a post-norm encoder with exact-erf GELU, whose head reads
the first token of the last layer. So that layer computes keys and values for all tokens, and everything else for one.
The families differ in names, in what is added to the words, and in the head's activation: see `FAMILIES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from rankrt_export.checkpoint.weights import read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Section
from rankrt_export.graph.graph import COMMON_DATA, Graph, Operators
from rankrt_export.precision.float32 import Float32Rows
from rankrt_export.targets import TARGETS

# The head is 0.3 % of the work of one short row and decides everything: it stays in fp32.
_HEAD = Float32Rows(matrices=COMMON_DATA)
# Configurations of 2019 leave it out; transformers takes this for all these families.
_DEFAULT_EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """What the parts of an encoder layer are called, below the layer's own name."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    widened: str = "intermediate.dense"
    narrowed: str = "output.dense"
    narrowed_norm: str = "output.LayerNorm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets a family apart.

    encoder         what the names of the encoder's weights begin with
    layers, parts   where its layers are, and what their parts are called
    head            the two linear layers of the head
    activation      the operator between them
    skips_padding   positions are counted from pad_token_id + 1
    fields          what config.json calls a field that most families call otherwise
    epsilon         of all norms, where config.json does not decide it; None where it does
    """

    encoder: str
    layers: str = "encoder.layer"
    parts: LayerNames = field(default_factory=LayerNames)
    head: tuple[str, str] = ("classifier.dense", "classifier.out_proj")
    activation: str = "Tanh"
    skips_padding: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    epsilon: float | None = None


_ROBERTA = Family(encoder="roberta", skips_padding=True)
FAMILIES: Mapping[str, Family] = {
    "BertForSequenceClassification": Family(encoder="bert", head=("bert.pooler.dense", "classifier")),
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "RobertaForSequenceClassification": _ROBERTA,
    "CamembertForSequenceClassification": _ROBERTA,
    "ElectraForSequenceClassification": Family(encoder="electra", activation="Gelu"),
    "DistilBertForSequenceClassification": Family(
        encoder="distilbert",
        layers="transformer.layer",
        parts=LayerNames(
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attended="attention.out_lin",
            attended_norm="sa_layer_norm",
            widened="ffn.lin1",
            narrowed="ffn.lin2",
            narrowed_norm="output_layer_norm",
        ),
        head=("pre_classifier", "classifier"),
        activation="Relu",
        epsilon=1e-12,
        fields={"num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "hidden_act": "activation"},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graph."""

    n_layers: int
    n_heads: int
    epsilon: float
    first_position: int

    @classmethod
    def read(cls, config: Mapping[str, Any], family: Family) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        names = family.fields
        for key, known in {"hidden_act": "gelu", "position_embedding_type": "absolute"}.items():
            name = names.get(key, key)
            if (found := config.get(name, known)) != known:
                raise CheckpointError(
                    f"config.json has {name} = {found!r}; only {known!r} is implemented for this family"
                )
        return cls(
            n_layers=int(config[names.get("num_hidden_layers", "num_hidden_layers")]),
            n_heads=int(config[names.get("num_attention_heads", "num_attention_heads")]),
            epsilon=family.epsilon or float(config.get("layer_norm_eps", _DEFAULT_EPSILON)),
            first_position=int(config["pad_token_id"]) + 1 if family.skips_padding else 0,
        )


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return one graph, whose output are the logits, (n_rows,)."""
    graph = blueprint.new_graph()
    operators = TARGETS[blueprint.operators](graph)
    family = FAMILIES[blueprint.config["architectures"][0]]
    model = _Encoder(graph, operators, family, Config.read(blueprint.config, family))
    logits = model.logits(has_token_types=blueprint.has_token_types)
    return [Section(graph=graph, layout=operators.layout, outputs={"logits": logits})]


class _Encoder:
    """The layers of an encoder and its head, written into one graph."""

    def __init__(self, graph: Graph, operators: Operators, family: Family, shape: Config) -> None:
        self._graph = graph
        self._operators = operators
        self._family = family
        self._shape = shape

    def logits(self, *, has_token_types: bool) -> ir.Value:
        """Return one logit for each row, (n_rows,)."""
        hidden = self.embeddings(has_token_types=has_token_types)
        for layer in range(self._shape.n_layers - 1):
            hidden = self.layer(layer, queries=hidden, hidden=hidden)
        first, last = self._operators.first_tokens(hidden), self._shape.n_layers - 1
        return self.head(self.layer(last, queries=first, hidden=hidden, first_only=True))

    def embeddings(self, *, has_token_types: bool) -> ir.Value:
        """Sum word, position and type vectors, and project them where they are narrower than the states."""
        graph, name = self._graph, f"{self._family.encoder}.embeddings"
        words = graph.embedding(self._operators.ids, f"{name}.word_embeddings.weight")
        table = read(graph.weights, f"{name}.position_embeddings.weight")[self._shape.first_position :]
        if has_token_types:
            types = read(graph.weights, f"{name}.token_type_embeddings.weight")
            positions = self._operators.positions(table, f"{name}.positions")
            places = graph.op("Add", positions, self._operators.token_types(types, f"{name}.types"))
        elif f"{name}.token_type_embeddings.weight" in graph.weights.names:
            type_0 = read(graph.weights, f"{name}.token_type_embeddings.weight")[0]
            places = self._operators.positions(table + type_0, f"{name}.positions+type_0")
        else:
            places = self._operators.positions(table, f"{name}.positions")
        hidden = self._operators.add_norm(words, places, f"{name}.LayerNorm", self._shape.epsilon)
        projection = f"{self._family.encoder}.embeddings_project"
        return graph.linear(hidden, projection) if f"{projection}.weight" in graph.weights.names else hidden

    def layer(self, layer: int, *, queries: ir.Value, hidden: ir.Value, first_only: bool = False) -> ir.Value:
        """Attend from `queries` to `hidden`, then the feed-forward, each with its residual and norm."""
        operators, parts, epsilon = self._operators, self._family.parts, self._shape.epsilon
        name = f"{self._family.encoder}.{self._family.layers}.{layer}"
        asked = (f"{name}.{parts.query}", f"{name}.{parts.key}", f"{name}.{parts.value}")
        attended = operators.attention(queries, hidden, asked, n_heads=self._shape.n_heads, first_only=first_only)
        attended = operators.linear_add_norm(
            attended, f"{name}.{parts.attended}", queries, f"{name}.{parts.attended_norm}", epsilon
        )
        widened = operators.linear_gelu(attended, f"{name}.{parts.widened}")
        return operators.linear_add_norm(
            widened, f"{name}.{parts.narrowed}", attended, f"{name}.{parts.narrowed_norm}", epsilon
        )

    def head(self, first: ir.Value) -> ir.Value:
        """Return one logit for each first token, (n_rows,)."""
        graph, (dense, out) = self._graph, self._family.head
        inner = graph.linear(graph.as_float32(first), dense, precision=_HEAD)
        pooled = graph.op(self._family.activation, inner)
        logits = graph.op("Reshape", graph.linear(pooled, out, precision=_HEAD), graph.ints(-1))
        logits.shape = ir.Shape(["n_rows"])
        return logits
