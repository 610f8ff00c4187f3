"""A checkpoint: a folder in Hugging Face's layout, with its configuration, weights and tokenizer.

Decides what is a reranker and what is not, before anything is read or written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankrt.artifact.manifest import MANIFEST
from rankrt.artifact.source import Hub
from rankrt.files.rights import exists, unreadable
from rankrt_export.checkpoint import adapter, modules
from rankrt_export.checkpoint.card import CARD, Card, read_card
from rankrt_export.checkpoint.counterparts import counterpart_of, translated
from rankrt_export.checkpoint.families import DECODERS, LAYERWISE, LIGHTWEIGHT
from rankrt_export.checkpoint.fields import Fields, read_config, read_object
from rankrt_export.checkpoint.labels import HEADS, LabelWeights, labels_of, with_label
from rankrt_export.checkpoint.modules import Saved, read_saved
from rankrt_export.checkpoint.renamed import RenamedWeights
from rankrt_export.checkpoint.weights import Weights, open_weights
from rankrt_export.errors import CheckpointError

# What a checkpoint's own folder may hold of use; other frameworks' weights and other people's exports stay away.
_HUB_FILES = ["config.json", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "sentencepiece*"]
_HUB_FILES += ["adapter_config.json", "adapter_model.safetensors"]
_HUB_FILES += ["spm.model", "spiece.model", "model*.safetensors", "model.safetensors.index.json"]
_HUB_FILES += ["pytorch_model*.bin", "pytorch_model.bin.index.json", "chat_template.jinja", MANIFEST]
_HUB_FILES += [CARD, *modules.FILES]
# Classes that come with code which rankrt has written itself.
_OWN = (LAYERWISE, LIGHTWEIGHT)
# Why rankrt has not written what other code computes, by how the names of its classes begin. Of JinaBERT there are
# public copies. The code of jina-reranker-v1-tiny and -turbo, with 12 heads, is said to halve the slopes of heads 8 to
# 11, and the copies do not.
_NOT_WRITTEN = {
    "JinaBert": "JinaBERT is not written here: only that code says by which slopes its heads see distances",
    "JinaForRanking": "It ranks a list of passages in one row, which is not implemented",
    "JinaVL": "It reads images, which is not implemented",
    "LlamaBidirectional": "Attention in both directions is not implemented for Llama",
    "LlamaNemotronVL": "It reads images, which is not implemented",
}
# By what transformers chooses a class, and so the reference; of the classes that are written.
_MODEL_TYPES = {
    "Bert": "bert",
    "DebertaV2": "deberta-v2",
    "DistilBert": "distilbert",
    "Electra": "electra",
    "Gte": "gte",
    "ModernBert": "modernbert",
    "XLMRoberta": "xlm-roberta",
    "Roberta": "roberta",
    "Camembert": "camembert",
    "CostWiseGemma": "cost_wise_gemma",
    "Gemma": "gemma",
    "Gemma2": "gemma2",
    "LayerWiseMiniCPM": "minicpm",
    "Llama": "llama",
    "Mistral": "mistral",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
}
_LAYER = re.compile(r"\blayers?\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A reranker as it was trained.

    id         the name of the folder or of the hub repository
    base       the id of the checkpoint whose files these are: of an adapter its base model's
    config, tokenizer_config   what these files say
    saved      what sentence-transformers says beside them
    card       what the model card says
    labels     of a classifier with two labels the one whose logit a score is, and the one whose logit is subtracted
    is_loadable  transformers reads the folder's weights itself, under the names that they have there
    """

    id: str
    base: str
    revision: str | None
    folder: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    saved: Saved
    card: Card
    weights: Weights
    labels: tuple[str, ...] = ()
    is_loadable: bool = True

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
        """Whether a row is a question that the model answers after its last token."""
        return self.architecture in DECODERS

    @property
    def has_head(self) -> bool:
        """Whether it has heads that give scores, instead of a vocabulary of answers."""
        return self.architecture.endswith("ForSequenceClassification") or self.architecture == LIGHTWEIGHT

    @property
    def max_length(self) -> int:
        """The most tokens that a row may have: what the positions allow, or the tokenizer's limit if it is lower.

        The RoBERTa family counts positions from pad_token_id + 1, so two of its 514 or 8,194 are never used.
        """
        n_positions = int(self.config.get("max_position_embeddings") or 512)
        if self.config["model_type"] == "minicpm":
            # 2,048 are declared. Positions are rotations, which have no end; its authors give 8,192 for this family.
            n_positions = max(n_positions, 8192)
        if self.config["model_type"] in {"roberta", "xlm-roberta", "camembert"}:
            n_positions -= int(self.config.get("pad_token_id", 1)) + 1
        lengths = (self.tokenizer_config.get("model_max_length"), self.saved.max_length)
        return max(1, int(min([n_positions, *filter(None, lengths)])))


def open_checkpoint(source: str, hub: Hub, label: str | None = None) -> Checkpoint:
    """Open a local folder, or a hub repository, which is downloaded. An adapter is merged into the base that it names.

    `label` is one of the two labels of a classifier, which is a reranker then. Raises CheckpointError if the checkpoint
    is damaged, or not a reranker with one score.
    """
    folder = Path(source).expanduser()
    is_local = folder.is_dir()
    if not is_local:
        folder = hub.fetch(source, _HUB_FILES)
    # A local path says nothing on another machine; the hash of the weights does.
    id_, revision = (folder.resolve().name, None) if is_local else (source, folder.name)
    if _has(folder, MANIFEST):
        raise CheckpointError(
            f"{source} is an artifact already: it has a {MANIFEST}. Load it as it is, or export the checkpoint that it"
            " was made from"
        )
    if _has(folder, adapter.CONFIG) and not _has(folder, "config.json"):
        if label is not None:
            raise CheckpointError(f"--label {label} is for classifiers; {source} is an adapter. Leave it out")
        return replace(_merged(folder, hub), id=id_, revision=revision)
    config = read_config(folder / "config.json")
    if (counterpart := counterpart_of(config)) is not None:
        config = translated(config, counterpart)
    check_asks_for_no_code(config, source)
    check_names(config)
    labels: tuple[str, ...] = ()
    if label is not None:
        config, labels, number = with_label(config, label, source)
    saved = read_saved(folder, config)
    check_is_reranker(config, source, saved)
    tokenizer_config = _read_tokenizer_config(folder)
    weights = open_weights(folder)
    if counterpart is not None:
        weights = RenamedWeights(weights, counterpart.naming)
    if labels:
        weights = LabelWeights(weights, number)
    check_head(config, weights, folder)
    return Checkpoint(
        id=id_,
        base=id_,
        revision=revision,
        folder=folder,
        config=config,
        tokenizer_config=tokenizer_config,
        saved=saved,
        card=read_card(folder),
        weights=weights,
        labels=labels,
        is_loadable=not labels and (counterpart is None or counterpart.is_known),
    )


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    config = read_object(path)
    length = config.get("model_max_length")
    # transformers writes 1e30 where there is no limit.
    if length is not None and not (isinstance(length, int | float) and length >= 1):
        raise CheckpointError(f"{path} has model_max_length = {length!r}, expected a number of tokens")
    return config


def _merged(folder: Path, hub: Hub) -> Checkpoint:
    """Return the base model of an adapter with the adapter in its weights, and with the head that it brings."""
    config = adapter.AdapterConfig.read(folder)
    beside = folder / config.base
    base = open_checkpoint(str(beside if beside.is_dir() else config.base), replace(hub, revision=config.base_revision))
    if not base.is_decoder:
        raise CheckpointError(
            f"{folder} is an adapter of a {base.architecture}; adapters are merged into decoders only. Merge it with"
            " peft (merge_and_unload, save_pretrained), and export what that saves"
        )
    weights = adapter.MergedWeights(base.weights, folder, config)
    if config.has_head and not base.architecture.endswith("ForSequenceClassification"):
        family = base.architecture.removesuffix("ForCausalLM")
        architecture = f"{family}ForSequenceClassification"
        if architecture not in DECODERS:
            raise CheckpointError(f"{folder} has a head for a {architecture}, which is not implemented")
        changed = {**base.config, "architectures": [architecture], "num_labels": 1}
        base = replace(base, config=Fields(base.folder / "config.json", changed))
    check_head(base.config, weights, folder)
    return replace(base, weights=weights)


def check_asks_for_no_code(config: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError for a model of which we know no other code than its own."""
    architectures = config.get("architectures", [])
    if any(name.startswith("AutoModel") for name in config.get("auto_map", {})) and not set(architectures) & set(_OWN):
        reasons = [reason for start, reason in _NOT_WRITTEN.items() for name in architectures if name.startswith(start)]
        advice = reasons or ["It can be exported only if its class is one of transformers' own"]
        raise CheckpointError(
            f"{source} is a {' and '.join(architectures) or 'model'} whose code is in its repository (config.json:"
            f" auto_map). rankrt never runs code from a checkpoint. {advice[0]}"
        )


def check_names(config: Fields) -> None:
    """Raise CheckpointError if a configuration does not say which model it is of."""
    if missing := [name for name in ("model_type", "architectures") if not config.get(name)]:
        raise CheckpointError(f"{config.path} names no {' and no '.join(missing)}: is it a model's?")


def check_is_reranker(config: Fields, source: str, saved: Saved) -> None:
    """Raise CheckpointError unless the configuration is that of a decoder, or of a classifier with one label."""
    architecture = str(config["architectures"][0])
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(
            f"{source} is quantized already (config.json: quantization_config, {method}): export the checkpoint with"
            " whole weights that it was made from"
        )
    family = architecture.removesuffix("ForSequenceClassification").removesuffix("ForCausalLM")
    if (expected := _MODEL_TYPES.get(family, config["model_type"])) != config["model_type"]:
        raise CheckpointError(
            f"{source} is a {architecture}, and config.json says model_type = {config['model_type']!r}, not"
            f" {expected!r}: they do not belong together"
        )
    if architecture in DECODERS and architecture.endswith("ForCausalLM"):
        return
    if saved.head is not None:
        return
    if architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        known = ", ".join(name for name in DECODERS if name.endswith("ForCausalLM"))
        raise CheckpointError(
            f"{source} is a {architecture}, which is not implemented; of models that generate text these are: {known}"
        )
    if not architecture.endswith("ForSequenceClassification"):
        raise CheckpointError(
            f"{source} is a {architecture}: it has no classifier head, so it gives no scores. An embedding or base"
            " model is not a reranker; the cross-encoder fine-tuned from it is a ...ForSequenceClassification"
        )
    if (n_labels := len(labels := labels_of(config))) != 1:
        advice = (
            f". If one of them says that the passage answers the query, name it: --label {labels[1]}. A score is then"
            " its logit less the other's"
        )
        raise CheckpointError(
            f"{source} has {n_labels} labels ({', '.join(labels[:5])}{', ...' * (n_labels > 5)}): it is a classifier. A"
            f" reranker has one, its score{advice * (n_labels == 2)}"
        )


def check_head(config: Mapping[str, Any], weights: Weights, folder: Path) -> None:
    """Raise CheckpointError if the weights are those of a model with more outputs or layers than config.json says."""
    for name in [f"{head}.weight" for head in HEADS]:
        if name in weights.names and (n := (*weights.shape(name), 1)[0]) != 1:
            raise CheckpointError(f"{folder} has {n} rows in {name}: it is a classifier. A reranker has one, its score")
    numbers = [int(found[1]) for name in weights.names if (found := _LAYER.search(name))]
    said = config.get("num_hidden_layers")
    if numbers and said is not None and max(numbers) + 1 > said:
        raise CheckpointError(
            f"{folder} has weights of {max(numbers) + 1} layers, and config.json says num_hidden_layers = {said}: they"
            " do not belong together"
        )


def _has(folder: Path, name: str) -> bool:
    try:
        return exists(folder / name)
    except OSError as error:
        raise CheckpointError(unreadable(folder, error)) from error
