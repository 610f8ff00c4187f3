"""The fields of a checkpoint's JSON files: there, and of the type that the rest of the export relies on.

Knows the types and the ranges of config.json's fields, not what they mean for a model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rankrt_export.errors import CheckpointError

_Size = Annotated[int, Meta(ge=1, le=1 << 24)]
# A decoder writes a table of angles for every position: 2 million are 1 GB.
_Positions = Annotated[int, Meta(ge=1, le=1 << 21)]
_Id = Annotated[int, Meta(ge=0, le=1 << 31)]
_Epsilon = Annotated[float, Meta(ge=0, le=1)]
_Factor = Annotated[float, Meta(gt=0, le=1e12)]
_Text = Annotated[str, Meta(min_length=1)]


class _Known(msgspec.Struct, kw_only=True, frozen=True):
    """The fields of config.json that are read, as far as they are there. null is the same as not there."""

    model_type: str = ""
    architectures: list[_Text] = []
    num_labels: _Size = 1
    id2label: dict[str, Any] = {}
    label2id: dict[str, Any] = {}
    hidden_size: _Size = 1
    intermediate_size: _Size = 1
    num_hidden_layers: _Size = 1
    num_attention_heads: _Size = 1
    num_key_value_heads: _Size = 1
    head_dim: _Size = 1
    vocab_size: _Size = 1
    type_vocab_size: Annotated[int, Meta(ge=0, le=1 << 24)] = 1
    max_position_embeddings: _Positions = 1
    pad_token_id: _Id = 0
    layer_norm_eps: _Epsilon = 1e-5
    rms_norm_eps: _Epsilon = 1e-5
    rope_theta: _Factor = 1e4
    rope_scaling: dict[str, Any] = {}
    rope_parameters: dict[str, Any] = {}
    sliding_window: _Size = 1
    use_sliding_window: bool = False
    tie_word_embeddings: bool = False
    dim: _Size = 1
    n_layers: _Size = 1
    n_heads: _Size = 1
    activation: str = ""
    norm_eps: _Epsilon = 1e-5
    layer_types: list[_Text] = []
    global_attn_every_n_layers: _Size = 1
    local_attention: Annotated[int, Meta(ge=2, le=1 << 24)] = 128
    global_rope_theta: _Factor = 1e4
    local_rope_theta: _Factor = 1e4
    hidden_act: str = ""
    hidden_activation: str = ""
    position_embedding_type: str = ""
    relative_attention: bool = False
    position_buckets: Annotated[int, Meta(le=1 << 21)] = -1
    max_relative_positions: Annotated[int, Meta(le=1 << 21)] = -1
    pos_att_type: str | list[str] = []
    share_att_key: bool = False
    norm_rel_ebd: str = ""
    position_biased_input: bool = True
    conv_kernel_size: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    pooler_hidden_act: str = ""
    start_layer: _Size = 1
    head_multi: bool = True
    head_type: str = ""
    scale_emb: _Factor = 1.0
    scale_depth: _Factor = 1.0
    auto_map: dict[str, Any] = {}
    quantization_config: dict[str, Any] = {}
    sentence_transformers: dict[str, Any] = {}
    sbert_ce_default_activation_function: str = ""


class Fields(dict[str, Any]):
    """The fields of a file; `fields[name]` raises CheckpointError, with the file, if one is missing."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self.path} has no {name}, which this model needs")


def read_object(path: Path) -> Fields:
    """Read a file that holds a JSON object. Raises CheckpointError for any other."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return Fields(path, content)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises CheckpointError if it cannot be read."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a checkpoint: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def token_of(tokenizer_config: Mapping[str, Any], key: str) -> str | None:
    """Return a special token of tokenizer_config.json, where it may be an object with its properties."""
    token = tokenizer_config.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise CheckpointError(f"tokenizer_config.json has {key} = {token!r}, expected a text")
    return content


def read_config(path: Path) -> Fields:
    """Read a config.json, without its nulls. Raises CheckpointError for a field of another type or out of range."""
    config = Fields(path, {name: value for name, value in read_object(path).items() if value is not None})
    try:
        msgspec.convert(config, _Known)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    return config
