"""The Llama-like decoders: Llama, Mistral, Qwen 2 and 3, Gemma (the first), MiniCPM, in one file and a table.

Pre-norm layers of grouped causal attention with rotary positions and a gated feed-forward, as in transformers' classes;
what differs between the families is in `FAMILIES`. A score is read off a row's last token: the last layer of a run
computes keys and values for all tokens and the rest for the last ones, and in place of a vocabulary matrix there is one
vector. For a CPU the layers are cut into sections behind those that a score can be read from; for a GPU they are one
graph that ends behind the last of these.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from rankrt.artifact.precisions import TARGETS
from rankrt_export.checkpoint.families import DECODERS, DecoderFamily
from rankrt_export.checkpoint.weights import read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Readout, Section
from rankrt_export.graph.graph import CausalEngine, Graph, RotaryTables
from rankrt_export.targets import CAUSAL_TARGETS
from rankrt_export.targets.segment import SegmentShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets a family apart.

    activations      how config.json may call the gate's activation
    norm_shift       what is added to the scale of a norm
    has_head_norms   queries and keys are normalised, head by head
    scales_by_width  embeddings are multiplied with the root of their width
    """

    activations: tuple[str, ...] = ("silu",)
    norm_shift: float = 0.0
    has_head_norms: bool = False
    scales_by_width: bool = False


# Older Gemma files say "gelu" and mean its tanh approximation, as transformers 5 reads them.
FAMILIES: Mapping[DecoderFamily, Family] = {
    "gemma": Family(activations=("gelu_pytorch_tanh", "gelu"), norm_shift=1.0, scales_by_width=True),
    "llama": Family(),
    "qwen3": Family(has_head_norms=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graphs.

    embedding_scale, residual_scale  what embeddings and the outputs of attention and feed-forward are multiplied with
    """

    family: Family
    n_layers: int
    n_features: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    epsilon: float
    rope_base: float
    embedding_scale: float
    residual_scale: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        family = FAMILIES[DECODERS[config["architectures"][0]]]
        _check(config, family)
        n_features, n_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        n_layers = int(config["num_hidden_layers"])
        width_scale = float(np.sqrt(n_features)) if family.scales_by_width else 1.0
        return cls(
            family=family,
            n_layers=n_layers,
            n_features=n_features,
            n_heads=n_heads,
            n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
            head_size=int(config.get("head_dim") or n_features // n_heads),
            epsilon=float(config["rms_norm_eps"]),
            rope_base=_rope_base(config),
            # MiniCPM's own, which no other family has.
            embedding_scale=width_scale * float(config.get("scale_emb", 1.0)),
            residual_scale=float(config["scale_depth"]) / np.sqrt(n_layers) if "scale_depth" in config else 1.0,
        )


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return a section for each readout, for a GPU for the last; outputs are `logits` and what sections hand on."""
    assert blueprint.target != "portable", "that is for encoders"
    shape, start, sections = Config.read(blueprint.config), 0, []
    for readout in blueprint.readouts if TARGETS[blueprint.target].has_exits else blueprint.readouts[-1:]:
        sections.append(_section(blueprint, shape, range(start, readout.layer), readout))
        start = readout.layer
    return sections


def _section(blueprint: Blueprint, shape: Config, layers: range, readout: Readout) -> Section:
    graph = blueprint.new_graph()
    segment = SegmentShape(
        is_first=layers.start == 0,
        n_layers=len(layers),
        n_features=shape.n_features,
        n_kv_heads=shape.n_kv_heads,
        head_size=shape.head_size,
    )
    engine = CAUSAL_TARGETS[blueprint.target](graph, segment)
    model = _Decoder(graph, engine, shape, blueprint.max_length)
    hidden = model.embeddings() if segment.is_first else engine.states
    for layer in layers:
        hidden = model.layer(layer, hidden, is_last=layer == layers[-1])
    outputs = {"logits": model.logits(hidden, readout), **engine.outputs()}
    if readout is not blueprint.readouts[-1]:
        outputs["hidden"] = hidden
    return Section(graph=graph, layout=engine.layout, outputs=outputs, layer=readout.layer)


class _Decoder:
    """The layers of a decoder, written into one graph."""

    def __init__(self, graph: Graph, engine: CausalEngine, shape: Config, max_length: int) -> None:
        self._graph = graph
        self._engine = engine
        self._shape = shape
        self._tables = RotaryTables.of(max_length, shape.head_size, shape.rope_base)

    def embeddings(self) -> ir.Value:
        """Return the scaled vectors of the tokens."""
        vectors = self._graph.embedding(self._engine.states, "model.embed_tokens.weight")
        return self._scaled(self._graph.as_float32(vectors), self._shape.embedding_scale)

    def layer(self, layer: int, hidden: ir.Value, *, is_last: bool) -> ir.Value:
        """Return the states behind a layer, of the tokens that go on if it is the segment's last."""
        name = f"model.layers.{layer}"
        attended = self._attention(name, self._norm(hidden, f"{name}.input_layernorm"), is_last=is_last)
        hidden = self._added(self._engine.going_on(hidden) if is_last else hidden, attended)
        widened = self._feed_forward(f"{name}.mlp", self._norm(hidden, f"{name}.post_attention_layernorm"))
        return self._added(hidden, widened)

    def logits(self, hidden: ir.Value, readout: Readout) -> ir.Value:
        """Return one logit for each row, (n_rows,)."""
        last = self._graph.as_float32(self._norm(self._engine.last_tokens(hidden), "model.norm"))
        vector = self._graph.array(f"readout.{readout.layer}", readout.vector.reshape(-1, 1))
        return self._graph.op("Squeeze", self._graph.op("MatMul", last, vector), self._graph.ints(1))

    def _attention(self, name: str, hidden: ir.Value, *, is_last: bool) -> ir.Value:
        shape, name = self._shape, f"{name}.self_attn"
        asking = self._engine.asking(hidden) if is_last else hidden
        query = self._heads(asking, f"{name}.q", shape.n_heads, is_last=is_last)
        key = self._heads(hidden, f"{name}.k", shape.n_kv_heads, is_last=False)
        value = self._linear(hidden, f"{name}.v_proj")
        attended = self._engine.attention(query, key, value, n_heads=shape.n_heads, is_last=is_last)
        return self._linear(attended, f"{name}.o_proj")

    def _heads(self, hidden: ir.Value, name: str, n_heads: int, *, is_last: bool) -> ir.Value:
        """Return queries or keys, turned by their positions, (..., n_heads * size)."""
        x = self._linear(hidden, f"{name}_proj")
        if self._shape.family.has_head_norms:
            x = self._head_norm(x, f"{name}_norm", n_heads)
        return self._engine.rotated(x, self._tables, n_heads=n_heads, is_last=is_last)

    def _head_norm(self, x: ir.Value, name: str, n_heads: int) -> ir.Value:
        graph, size, places = self._graph, self._shape.head_size, [0] * self._engine.n_axes
        by_head = graph.op("Reshape", graph.as_float32(x), graph.ints(*places, n_heads, size))
        return graph.op("Reshape", self._norm(by_head, name), graph.ints(*places, n_heads * size))

    def _feed_forward(self, name: str, hidden: ir.Value) -> ir.Value:
        gate, up = (self._linear(hidden, f"{name}.{part}_proj") for part in ("gate", "up"))
        return self._linear(self._graph.op("Mul", self._activated(gate), up), f"{name}.down_proj")

    def _activated(self, gate: ir.Value) -> ir.Value:
        if self._shape.family is FAMILIES["gemma"]:
            return self._graph.op("Gelu", gate, approximate="tanh")
        return self._engine.silu(gate)

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        """Multiply; Qwen 2 has biases before its attention, and others where config.json asks for them."""
        has_bias = f"{name}.bias" in self._graph.weights.names
        return self._graph.linear(x, name) if has_bias else self._graph.product(x, name)

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        """Normalise float32, times the scale of that name; return states."""
        name, shift = f"{name}.weight", self._shape.family.norm_shift
        scale = read(self._graph.weights, name)
        if shift:
            name, scale = f"{name}+{shift}", scale + np.float32(shift)
        return self._engine.rms_norm(x, name, scale, self._shape.epsilon)

    def _added(self, hidden: ir.Value, x: ir.Value) -> ir.Value:
        """Return the sum of the layers so far and what comes to it, scaled, in float32."""
        return self._graph.op("Add", hidden, self._scaled(self._graph.as_float32(x), self._shape.residual_scale))

    def _scaled(self, x: ir.Value, scale: float) -> ir.Value:
        return x if scale == 1.0 else self._graph.op("Mul", x, self._graph.scalar(np.float32(scale)))


def _check(config: Mapping[str, Any], family: Family) -> None:
    for problem in _problems(config, family):
        raise CheckpointError(f"config.json has {problem}, which is not implemented for this family")


def _problems(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    activation = config.get("hidden_activation") or config.get("hidden_act", family.activations[0])
    if activation not in family.activations:
        yield f"the activation {activation!r}"
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if (kind := scaling.get("rope_type") or scaling.get("type") or "default") != "default":
        yield f"scaled positions ({kind})"
    window = (
        config.get("sliding_window") if config.get("use_sliding_window", config["model_type"] == "mistral") else None
    )
    if window is not None and int(window) < int(config["max_position_embeddings"]):
        yield f"a sliding window of {window} tokens"


def _rope_base(config: Mapping[str, Any]) -> float:
    """Transformers 5 writes rope_parameters, earlier ones rope_theta."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
