"""A checkpoint: a folder in Hugging Face's layout, with its configuration, weights and tokenizer.

Decides what is a reranker and what is not, before anything is read or written.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankrt.sources import Hub
from rankrt_export import adapter
from rankrt_export.architectures.decoder import FAMILIES
from rankrt_export.errors import CheckpointError
from rankrt_export.weights import Weights, open_weights

# What a checkpoint's own folder may hold of use; other frameworks' weights and other people's exports stay away.
_HUB_FILES = ["config.json", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "sentencepiece*"]
_HUB_FILES += ["adapter_config.json", "adapter_model.safetensors"]
_HUB_FILES += ["spm.model", "spiece.model", "model*.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A reranker as it was trained. `config` is its config.json, `tokenizer_config` its tokenizer_config.json."""

    id: str
    revision: str | None
    folder: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    weights: Weights

    @property
    def name(self) -> str:
        """The last part of the id."""
        return Path(self.id).name

    @property
    def architecture(self) -> str:
        """The model class that transformers would load."""
        return str(self.config["architectures"][0])

    @property
    def is_decoder(self) -> bool:
        """Whether a row is a question that the model answers behind its last token."""
        return self.architecture in FAMILIES

    @property
    def max_length(self) -> int:
        """The most tokens that a row may have: what the positions allow, or the tokenizer's limit if it is lower.

        The RoBERTa family counts positions from pad_token_id + 1, so two of its 514 or 8,194 are never used.
        """
        n_positions = int(self.config.get("max_position_embeddings") or 512)
        if self.config["model_type"] == "minicpm":
            # 2,048 are declared, of positions that are rotations and go on; its authors give 8,192 for this family.
            n_positions = max(n_positions, 8192)
        if self.config["model_type"] in {"roberta", "xlm-roberta", "camembert"}:
            n_positions -= int(self.config.get("pad_token_id", 1)) + 1
        return min(n_positions, int(self.tokenizer_config.get("model_max_length") or n_positions))


def open_checkpoint(source: str, hub: Hub) -> Checkpoint:
    """Open a local folder, or a hub repository, which is downloaded. An adapter is merged into the base that it names.

    Raises CheckpointError if it is damaged, or no reranker with one score.
    """
    folder = Path(source).expanduser()
    is_local = folder.is_dir()
    if not is_local:
        folder = hub.fetch(source, _HUB_FILES)
    # A local path says nothing on another machine; the hash of the weights does.
    id_, revision = (folder.resolve().name, None) if is_local else (source, folder.name)
    if _has(folder, adapter.CONFIG) and not _has(folder, "config.json"):
        return replace(_merged(folder, hub), id=id_, revision=revision)
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str) or not config.get("architectures"):
        raise CheckpointError(f"{folder / 'config.json'} names no model_type or no architectures: is it a model's?")
    check_is_reranker(config, source)
    return Checkpoint(
        id=id_,
        revision=revision,
        folder=folder,
        config=config,
        tokenizer_config=_read_json(folder / "tokenizer_config.json") if _has(folder, "tokenizer_config.json") else {},
        weights=open_weights(folder),
    )


def _merged(folder: Path, hub: Hub) -> Checkpoint:
    """Return the base model of an adapter with the adapter in its weights."""
    config = adapter.AdapterConfig.read(folder)
    beside = folder / config.base
    base = open_checkpoint(str(beside if beside.is_dir() else config.base), replace(hub, revision=None))
    if not base.is_decoder:
        raise CheckpointError(
            f"{folder} is an adapter of a {base.architecture}; adapters are merged into decoders only"
        )
    return replace(base, weights=adapter.MergedWeights(base.weights, folder, config))


def check_is_reranker(config: dict[str, Any], source: str) -> None:
    """Raise CheckpointError unless the configuration is that of a decoder, or of a classifier with one label."""
    architecture = str(config["architectures"][0])
    if architecture in FAMILIES and architecture.endswith("ForCausalLM"):
        return
    if not architecture.endswith("ForSequenceClassification"):
        raise CheckpointError(
            f"{source} is a {architecture}: it has no classifier head, so it gives no scores. An embedding or base"
            " model is no reranker; the cross-encoder fine-tuned from it is a ...ForSequenceClassification"
        )
    n_labels = len(config.get("id2label") or {0: "", 1: ""})
    if (n_labels := int(config.get("num_labels", n_labels))) != 1:
        raise CheckpointError(f"{source} has {n_labels} labels: it is a classifier. A reranker has one, its score")


def _has(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no checkpoint: it has no {path.name}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
