"""The Llama-like decoders: Llama, Mistral, Qwen 2 and 3, Gemma and Gemma 2, MiniCPM, in one file and a table.

Pre-norm layers of grouped causal attention with rotary positions and a gated feed-forward, as in transformers' classes.
`FAMILIES` has the differences. A score is read off a row's last token. So the last layer of a run computes only keys
and values for all tokens, and one vector stands in place of a vocabulary matrix. For a CPU the layers are cut into
sections after those that a score can be read from, and after those where passages are compressed. For a GPU they are
one graph that ends after the last of these.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import TARGETS
from rankrt_export.checkpoint.families import DECODERS, LIGHTWEIGHT, DecoderFamily
from rankrt_export.checkpoint.weights import read
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint, Readout, Section
from rankrt_export.graph.graph import CausalOperators, Graph, RotaryTables
from rankrt_export.targets import CAUSAL_TARGETS
from rankrt_export.targets.segment import SegmentShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets a family apart.

    activations      how config.json may call the gate's activation
    norm_shift       added to the scale of a norm
    has_head_norms   queries and keys are normalised, head by head
    scales_by_width  embeddings are multiplied with the root of their width
    has_outer_norms  what attention and feed-forward return is normalised too
    """

    activations: tuple[str, ...] = ("silu",)
    norm_shift: float = 0.0
    has_head_norms: bool = False
    scales_by_width: bool = False
    has_outer_norms: bool = False


# Older Gemma files say "gelu" and mean its tanh approximation, as transformers 5 reads them.
FAMILIES: Mapping[DecoderFamily, Family] = {
    "gemma": Family(activations=("gelu_pytorch_tanh", "gelu"), norm_shift=1.0, scales_by_width=True),
    "gemma2": Family(activations=("gelu_pytorch_tanh",), norm_shift=1.0, scales_by_width=True, has_outer_norms=True),
    "llama": Family(),
    "qwen3": Family(has_head_norms=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of config.json that shape the graphs.

    embedding_scale, residual_scale  what embeddings and the outputs of attention and feed-forward are multiplied with
    attention_scale, attention_cap  what the products of queries and keys are multiplied with, and bounded by
    windows  of each layer, how many tokens a token sees; None for all before it
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
    attention_scale: float
    attention_cap: float | None
    windows: tuple[int | None, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Config":
        """Read config.json. Raises CheckpointError for what this file does not implement."""
        family = FAMILIES[DECODERS[config["architectures"][0]]]
        for problem in _problems(config, family):
            raise CheckpointError(f"config.json has {problem}, which is not implemented for this family")
        n_features, n_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        n_layers = int(config["num_hidden_layers"])
        width_scale = float(np.sqrt(n_features)) if family.scales_by_width else 1.0
        head_size = int(config.get("head_dim") or n_features // n_heads)
        is_gemma2 = family is FAMILIES["gemma2"]
        return cls(
            family=family,
            n_layers=n_layers,
            n_features=n_features,
            n_heads=n_heads,
            n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
            head_size=head_size,
            epsilon=float(config["rms_norm_eps"]),
            rope_base=_rope_base(config),
            # MiniCPM's own, which no other family has.
            embedding_scale=width_scale * float(config.get("scale_emb", 1.0)),
            residual_scale=float(config["scale_depth"]) / np.sqrt(n_layers) if "scale_depth" in config else 1.0,
            attention_scale=float(config.get("query_pre_attn_scalar", 256) if is_gemma2 else head_size) ** -0.5,
            attention_cap=_attention_cap(config) if is_gemma2 else None,
            windows=_windows(config, n_layers) if is_gemma2 else (None,) * n_layers,
        )


def build(blueprint: Blueprint) -> Sequence[Section]:
    """Return a section for each readout and cut, for a GPU for the last readout.

    Outputs are `logits` after a readout's layer, and what sections hand on.
    """
    assert blueprint.operators not in ("openvino", "portable"), "those are for encoders"
    shape, start, sections = Config.read(blueprint.config), 0, []
    readouts = {one.layer: one for one in blueprint.readouts}
    last = max(readouts)
    for end in sorted({*readouts, *blueprint.cuts}) if TARGETS[blueprint.target].has_exits else [last]:
        sections.append(_section(blueprint, shape, range(start, end), readouts.get(end), is_last=end == last))
        start = end
    return sections


def _section(blueprint: Blueprint, shape: Config, layers: range, readout: Readout | None, *, is_last: bool) -> Section:
    graph = blueprint.new_graph()
    segment = SegmentShape(
        is_first=layers.start == 0,
        n_layers=len(layers),
        n_features=shape.n_features,
        n_kv_heads=shape.n_kv_heads,
        head_size=shape.head_size,
        scale=shape.attention_scale,
        cap=shape.attention_cap,
    )
    operators = CAUSAL_TARGETS[blueprint.target](graph, segment)
    model = _Decoder(graph, operators, shape, blueprint.max_length)
    hidden = model.embeddings() if segment.is_first else operators.states
    for layer in layers:
        hidden = model.layer(layer, hidden, is_last_layer=layer == layers[-1])
    outputs = {} if readout is None else {"logits": model.logits(hidden, readout)}
    outputs |= operators.outputs()
    if not is_last:
        outputs["hidden"] = hidden
    return Section(graph=graph, layout=operators.layout, outputs=outputs, layer=layers.stop)


class _Decoder:
    """The layers of a decoder, written into one graph."""

    def __init__(self, graph: Graph, operators: CausalOperators, shape: Config, max_length: int) -> None:
        self._graph = graph
        self._operators = operators
        self._shape = shape
        self._tables = RotaryTables.of(max_length, shape.head_size, shape.rope_base)

    def embeddings(self) -> ir.Value:
        """Return the scaled vectors of the tokens."""
        vectors = self._graph.embedding(self._operators.states, "model.embed_tokens.weight")
        return self._scaled(self._graph.as_float32(vectors), self._shape.embedding_scale)

    def layer(self, layer: int, hidden: ir.Value, *, is_last_layer: bool) -> ir.Value:
        """Return the states after a layer, (..., n_features); after the segment's last one, those of its outputs."""
        name, window, has_outer = (
            f"model.layers.{layer}",
            self._shape.windows[layer],
            self._shape.family.has_outer_norms,
        )
        attended = self._attention(
            name, self._norm(hidden, f"{name}.input_layernorm"), window, is_last_layer=is_last_layer
        )
        if has_outer:
            attended = self._norm(self._graph.as_float32(attended), f"{name}.post_attention_layernorm")
        hidden = self._added(self._operators.last_layer_outputs(hidden) if is_last_layer else hidden, attended)
        inner = "pre_feedforward_layernorm" if has_outer else "post_attention_layernorm"
        widened = self._feed_forward(f"{name}.mlp", self._norm(hidden, f"{name}.{inner}"))
        if has_outer:
            widened = self._norm(self._graph.as_float32(widened), f"{name}.post_feedforward_layernorm")
        return self._added(hidden, widened)

    def logits(self, hidden: ir.Value, readout: Readout) -> ir.Value:
        """Return one logit for each row, (n_rows,)."""
        last = self._graph.as_float32(self._norm(self._operators.last_tokens(hidden), "model.norm"))
        logits = self._logit(last, f"readout.{readout.layer}", readout.vector, readout.cap)
        if readout.subtracted is None:
            return logits
        other = self._logit(last, f"readout.{readout.layer}.subtracted", readout.subtracted, readout.cap)
        return self._graph.op("Sub", logits, other)

    def _logit(self, last: ir.Value, name: str, vector: Float32Array, cap: float | None) -> ir.Value:
        graph = self._graph
        logits = graph.op("MatMul", last, graph.array(name, vector.reshape(-1, 1)))
        if cap is not None:
            logits = graph.bounded(logits, cap)
        return graph.op("Squeeze", logits, graph.ints(1))

    def _attention(self, name: str, hidden: ir.Value, window: int | None, *, is_last_layer: bool) -> ir.Value:
        shape, name = self._shape, f"{name}.self_attn"
        queries = self._operators.last_layer_queries(hidden) if is_last_layer else hidden
        query = self._heads(queries, f"{name}.q", shape.n_heads, is_last_layer=is_last_layer)
        key = self._heads(hidden, f"{name}.k", shape.n_kv_heads, is_last_layer=False)
        value = self._linear(hidden, f"{name}.v_proj")
        attended = self._operators.attention(
            query, key, value, n_heads=shape.n_heads, is_last_layer=is_last_layer, window=window
        )
        return self._linear(attended, f"{name}.o_proj")

    def _heads(self, hidden: ir.Value, name: str, n_heads: int, *, is_last_layer: bool) -> ir.Value:
        """Return queries or keys, turned by their positions, (..., n_heads * size)."""
        x = self._linear(hidden, f"{name}_proj")
        if self._shape.family.has_head_norms:
            x = self._head_norm(x, f"{name}_norm", n_heads)
        return self._operators.rotated(x, self._tables, n_heads=n_heads, is_last_layer=is_last_layer)

    def _head_norm(self, x: ir.Value, name: str, n_heads: int) -> ir.Value:
        graph, size, places = self._graph, self._shape.head_size, [0] * self._operators.n_axes
        by_head = graph.op("Reshape", graph.as_float32(x), graph.ints(*places, n_heads, size))
        return graph.op("Reshape", self._norm(by_head, name), graph.ints(*places, n_heads * size))

    def _feed_forward(self, name: str, hidden: ir.Value) -> ir.Value:
        is_silu = "silu" in self._shape.family.activations
        gate, up = (self._linear(hidden, f"{name}.{part}_proj") for part in ("gate", "up"))
        activated = self._operators.silu(gate) if is_silu else self._graph.op("Gelu", gate, approximate="tanh")
        return self._linear(self._graph.op("Mul", activated, up), f"{name}.down_proj")

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
        return self._operators.rms_norm(x, name, scale, self._shape.epsilon)

    def _added(self, hidden: ir.Value, x: ir.Value) -> ir.Value:
        """Return the sum of the layers so far and what comes to it, scaled, in float32."""
        return self._graph.op("Add", hidden, self._scaled(self._graph.as_float32(x), self._shape.residual_scale))

    def _scaled(self, x: ir.Value, scale: float) -> ir.Value:
        return x if scale == 1.0 else self._graph.op("Mul", x, self._graph.scalar(np.float32(scale)))


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
    if config.get("use_bidirectional_attention"):
        yield "attention in both directions"


def _attention_cap(config: Mapping[str, Any]) -> float | None:
    """Return Gemma 2's cap; FlagEmbedding's class computes attention by PyTorch's operator, which has none."""
    cap = config.get("attn_logit_softcapping", 50.0)
    return None if cap is None or config["architectures"][0] == LIGHTWEIGHT else float(cap)


def _windows(config: Mapping[str, Any], n_layers: int) -> tuple[int | None, ...]:
    """Return Gemma 2's windows, of every second layer unless `layer_types` says it."""
    window = config.get("sliding_window", 4096)
    kinds = config.get("layer_types") or ["sliding_attention", "full_attention"] * n_layers
    return tuple(None if window is None or kind == "full_attention" else int(window) for kind in kinds[:n_layers])


def _rope_base(config: Mapping[str, Any]) -> float:
    """Transformers 5 writes rope_parameters, earlier ones rope_theta."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
