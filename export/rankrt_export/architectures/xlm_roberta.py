"""The RoBERTa family with a classification head: bge-reranker-base, -large and -v2-m3.

Follows transformers' XLMRobertaForSequenceClassification: a post-norm encoder with exact-erf GELU, whose head reads the
first token of the last layer. So that layer computes keys and values for all tokens, and everything else for one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from rankrt_export.checkpoint.weights import read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Section
from rankrt_export.graph.graph import COMMON_DATA, Engine, Graph
from rankrt_export.precision.float32 import Float32
from rankrt_export.targets import TARGETS

# The head is 0.3 % of the work of one short row and decides everything: it stays in fp32.
_HEAD = Float32(matrices=COMMON_DATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graph."""

    n_layers: int
    n_heads: int
    epsilon: float
    padding_id: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        for key, known in {"hidden_act": "gelu", "position_embedding_type": "absolute"}.items():
            if (found := config.get(key, known)) != known:
                raise CheckpointError(
                    f"config.json has {key} = {found!r}; only {known!r} is implemented for this family"
                )
        return cls(
            n_layers=int(config["num_hidden_layers"]),
            n_heads=int(config["num_attention_heads"]),
            epsilon=float(config["layer_norm_eps"]),
            padding_id=int(config["pad_token_id"]),
        )


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return one graph, whose output are the logits, (n_rows,)."""
    graph = blueprint.new_graph()
    engine = TARGETS[blueprint.target](graph)
    return [Section(graph=graph, layout=engine.layout, outputs={"logits": logits(graph, engine, blueprint.config)})]


def logits(graph: Graph, engine: Engine, config: Mapping[str, Any]) -> ir.Value:
    """Return one logit for each row, (n_rows,)."""
    shape = Config.read(config)
    hidden = embeddings(graph, engine, shape)
    for layer in range(shape.n_layers - 1):
        hidden = encoder_layer(engine, shape, layer, queries=hidden, hidden=hidden)
    first, last = engine.first_tokens(hidden), shape.n_layers - 1
    return head(graph, encoder_layer(engine, shape, last, queries=first, hidden=hidden, first_only=True))


def embeddings(graph: Graph, engine: Engine, shape: Config) -> ir.Value:
    """Sum word, position and type vectors. Only type 0 occurs, and position 0 is the table's row padding_id + 1."""
    name = "roberta.embeddings"
    position_table = read(graph.weights, f"{name}.position_embeddings.weight")[shape.padding_id + 1 :]
    type_0 = read(graph.weights, f"{name}.token_type_embeddings.weight")[0]
    words = graph.embedding(engine.ids, f"{name}.word_embeddings.weight")
    positions = engine.positions(position_table + type_0, f"{name}.positions+type_0")
    return engine.add_norm(words, positions, f"{name}.LayerNorm", shape.epsilon)


def encoder_layer(
    engine: Engine, shape: Config, layer: int, *, queries: ir.Value, hidden: ir.Value, first_only: bool = False
) -> ir.Value:
    """Attend from `queries` to `hidden`, then the feed-forward, each with its residual and norm."""
    name, epsilon = f"roberta.encoder.layer.{layer}", shape.epsilon
    parts = (f"{name}.attention.self.query", f"{name}.attention.self.key", f"{name}.attention.self.value")
    attended = engine.attention(queries, hidden, parts, n_heads=shape.n_heads, first_only=first_only)
    attended = engine.linear_add_norm(
        attended, f"{name}.attention.output.dense", queries, f"{name}.attention.output.LayerNorm", epsilon
    )
    widened = engine.linear_gelu(attended, f"{name}.intermediate.dense")
    return engine.linear_add_norm(widened, f"{name}.output.dense", attended, f"{name}.output.LayerNorm", epsilon)


def head(graph: Graph, first: ir.Value) -> ir.Value:
    """Return one logit for each first token, (n_rows,)."""
    pooled = graph.op("Tanh", graph.linear(graph.as_float32(first), "classifier.dense", precision=_HEAD))
    logits = graph.op("Reshape", graph.linear(pooled, "classifier.out_proj", precision=_HEAD), graph.ints(-1))
    logits.shape = ir.Shape(["n_rows"])
    return logits
