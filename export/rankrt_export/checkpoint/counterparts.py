"""Checkpoints that bring code of their own for a model that transformers has as well: the class that computes the same.

Says what their config.json is in the words of that class, and how the names of their weights become its names. So the
code is never run. Knows no graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankrt_export.checkpoint.fields import Fields
from rankrt_export.checkpoint.renamed import Naming
from rankrt_export.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterpart:
    """A class of transformers in the place of one that comes with a checkpoint.

    fields    of config.json, in transformers' words
    naming    how the stored names of weights become those of the class
    is_known  transformers reads the stored names itself
    """

    fields: Mapping[str, Any]
    naming: Naming
    is_known: bool


# Alibaba's new-impl, which transformers has as GTE since 5.23.
_GTE = Naming(
    replaced={
        "new.": "gte.",
        ".encoder.layer.": ".layers.",
        ".attention.": ".self_attn.",
        ".attn_ln.": ".post_attention_layernorm.",
        ".mlp_ln.": ".post_mlp_layernorm.",
    },
    joined={
        ".qkv_proj.": (".q_proj.", ".k_proj.", ".v_proj."),
        ".up_gate_proj.": (".up_proj.", ".gate_proj."),
    },
)
# Jina's xlm-roberta-flash-implementation: XLM-RoBERTa in the names of flash-attention's modules.
_FLASH = Naming(
    replaced={
        ".emb_ln.": ".embeddings.LayerNorm.",
        ".encoder.layers.": ".encoder.layer.",
        ".mixer.out_proj.": ".attention.output.dense.",
        ".norm1.": ".attention.output.LayerNorm.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
        ".norm2.": ".output.LayerNorm.",
    },
    joined={".mixer.Wqkv.": (".attention.self.query.", ".attention.self.key.", ".attention.self.value.")},
)


def counterpart_of(config: Fields) -> Counterpart | None:
    """Return the class that computes what a checkpoint's own code does, if there is one.

    Raises CheckpointError if the code would compute something that the class does not.
    """
    architectures = config.get("architectures")
    if architectures == ["NewForSequenceClassification"]:
        return Counterpart(fields=_as_gte(config), naming=_GTE, is_known=True)
    if architectures == ["GteForSequenceClassification"]:
        return Counterpart(fields={}, naming=_GTE, is_known=True)
    code = str(config.get("auto_map", {}).get("AutoConfig", ""))
    if architectures == ["XLMRobertaForSequenceClassification"] and code.endswith(".XLMRobertaFlashConfig"):
        return Counterpart(fields={"model_type": "xlm-roberta"}, naming=_FLASH, is_known=False)
    return None


def translated(config: Fields, counterpart: Counterpart) -> Fields:
    """Return a config.json in transformers' words, which asks for no code."""
    changed = {**config, **counterpart.fields, "auto_map": None}
    return Fields(config.path, {name: value for name, value in changed.items() if value is not None})


def _as_gte(config: Fields) -> Mapping[str, Any]:
    """Return what differs from NewConfig, with its defaults, in GteConfig's words."""
    known = {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "pack_qkv": True}
    for name, value in (known | {"logn_attention_scale": False}).items():
        if (found := config.get(name, value)) != value:
            raise CheckpointError(
                f"config.json has {name} = {found!r}; only {value!r} is implemented for {config['architectures'][0]}"
            )
    return {
        "architectures": ["GteForSequenceClassification"],
        "model_type": "gte",
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        "rope_parameters": _rope_parameters(config),
        "rope_theta": None,
        "rope_scaling": None,
    }


def _rope_parameters(config: Fields) -> Mapping[str, Any]:
    """Return the rotary positions; NTK scaling by s is a base s times as large, and linear scaling by s ** (2 / size).

    The size is a head's (equation 6 of kexue.fm/archives/9706).
    """
    base, scaling = float(config.get("rope_theta", 10_000.0)), config.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": base}
    kind, factor, mixed = (scaling.get(name) for name in ("type", "factor", "mixed_b"))
    if kind != "ntk" or mixed is not None or not isinstance(factor, int | float) or not 0 < factor <= 1e6:
        raise CheckpointError(
            f"config.json has rope_scaling = {scaling!r}; only the type 'ntk' with a factor and without mixed_b is"
            f" implemented for {config['architectures'][0]}"
        )
    if factor <= 1:  # the code scales what is longer than max_position_embeddings, and nothing is
        return {"rope_type": "default", "rope_theta": base}
    per_feature = int(config["num_attention_heads"]) / int(config["hidden_size"])
    return {"rope_type": "linear", "rope_theta": base * factor, "factor": factor ** (2 * per_feature)}
