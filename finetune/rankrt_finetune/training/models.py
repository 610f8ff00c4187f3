"""Models as sentence-transformers' CrossEncoder, which its trainer takes, and how they are written again.

An encoder is read and joined to pairs by sentence-transformers. A decoder is asked as rankrt will ask it: the rows are
those of rankrt's own tokenizer, and the score is read where the exported graph reads it.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Module, Transformer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rankrt.artifact.source import Hub, local_folder
from rankrt.text.options import Rules
from rankrt.text.pairs import Pair, PairTokenizer
from rankrt.text.tokenizers import LibraryTokenizer
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.checkpoint.families import DECODERS, LAYERWISE
from rankrt_export.checkpoint.tokenizer import read_tokenizer
from rankrt_export.decoders.prompts import answer_ids, prompted_template, style_for
from rankrt_finetune.errors import TrainingError
from rankrt_finetune.training.recipe import Lora

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md"]
# Copied as they are: transformers 5 writes tokenizers that transformers 4, and so FlagEmbedding, cannot read.
_TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"]
_DECODER_FILES = ["chat_template.jinja", "generation_config.json", "modules.json", "*sentence*.json", "*_LogitScore"]
_ENCODER_LAYERS = ["query", "key", "value", "dense", "Wqkv", "Wi", "Wo", "qkv_proj", "o_proj"]
_DECODER_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model to train.

    encoder   sentence-transformers' CrossEncoder
    folder    the checkpoint that it came from
    style     how a decoder is asked, for the card; None for an encoder
    """

    encoder: Any
    folder: Path
    style: str | None

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.encoder.transformers_model

    def add_lora(self, lora: Lora) -> None:
        """Freeze the model, and add adapters of peft to the linear layers of its blocks. A head is trained whole."""
        from peft import LoraConfig, inject_adapter_in_model

        names = _DECODER_LAYERS if self.style is not None else _ENCODER_LAYERS
        linear = {name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}
        heads = [name for name in ("classifier", "score", "head") if hasattr(self.model, name)]
        targets = [
            name
            for name in linear
            if name.rpartition(".")[2] in names and name.split(".")[0] not in ("classifier", "score", "head", "lm_head")
        ]
        if not targets:
            raise TrainingError(f"--lora finds none of the layers {', '.join(names)} in {self.folder}. Leave it out")
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=sorted(targets)
        )
        # transformers' own add_adapter asks for a newer peft than the one that is tested.
        inject_adapter_in_model(config, self.model)
        for head in heads:
            getattr(self.model, head).requires_grad_(True)

    def compute_activations_twice(self) -> None:
        """Keep the states between blocks only; those within a block are computed again for the gradients."""
        enable = getattr(self.model, "activation_checkpointing_enable", None)  # its name from transformers 5 on
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def save_trained(self, path: Path) -> None:
        """Write the weights that are trained, and no others."""
        save_file({name: value.detach().contiguous() for name, value in self._trained().items()}, path)

    def load_trained(self, path: Path) -> None:
        """Read the same back."""
        found, trained = load_file(path), self._trained()
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(found[name])

    def save(self, folder: Path) -> None:
        """Write a checkpoint as the one that was loaded, with adapters merged into the weights."""
        _merge_lora(self.model)
        if (self.folder / "modules.json").exists() and self.style is None and _is_cross_encoder(self.folder):
            self.encoder.save_pretrained(str(folder), create_model_card=False)
        else:
            self.model.save_pretrained(folder)
        copied = _TOKENIZER_FILES if self.style is None else [*_TOKENIZER_FILES, *_DECODER_FILES]
        for file in {file for pattern in copied for file in self.folder.glob(pattern)}:
            (shutil.copytree if file.is_dir() else shutil.copy)(file, folder / file.name)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.encoder.named_parameters() if value.requires_grad}


def load_model(source: str, *, max_length: int, prompt: str | None, asked: str | None) -> Loaded:
    """Load a checkpoint, a folder or a hub id, in float32.

    prompt   how a decoder is asked, by the name of a style; None where its files say it
    asked    the question or instruction of the examples that the decoder is asked with, if they have one

    Raises TrainingError for a checkpoint that cannot be trained here, CheckpointError or ArtifactError for one that
    cannot be read.
    """
    folder = local_folder(source) or Hub().fetch(source, _HUB_FILES)
    if not (folder / "config.json").exists():
        raise TrainingError(f"{source} is not a checkpoint: it has no config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    if architecture == LAYERWISE:
        raise TrainingError(
            f"{source} is a layerwise MiniCPM, which only FlagEmbedding's own trainer trains"
            " (FlagEmbedding.finetune.reranker.decoder_only.layerwise). rankrt export reads its result"
        )
    if architecture in DECODERS:
        return _load_decoder(open_checkpoint(source, Hub()), max_length=max_length, prompt=prompt, asked=asked)
    if prompt is not None:
        raise TrainingError(f"--prompt is for decoders, and {source} is a {architecture}. Leave it out")
    return _load_encoder(folder, architecture, max_length=max_length)


def _load_encoder(folder: Path, architecture: str, *, max_length: int) -> Loaded:
    """Load a cross-encoder, or a base model with a new head of one label."""
    try:
        if (folder / "modules.json").exists() and _is_cross_encoder(folder):
            encoder = CrossEncoder(
                str(folder), max_length=max_length, local_files_only=True, model_kwargs={"dtype": torch.float32}
            )
        else:
            transformer = Transformer(
                str(folder),
                transformer_task="sequence-classification",
                max_seq_length=max_length,
                model_kwargs={"dtype": torch.float32, "local_files_only": True},
                config_kwargs={"num_labels": 1, "local_files_only": True},
            )
            encoder = CrossEncoder(modules=[transformer])
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"{folder} ({architecture}) cannot be read by transformers: {reason:.300}") from error
    if encoder.num_labels != 1:
        raise TrainingError(f"{folder} has {encoder.num_labels} labels: it is a classifier. A reranker has one score")
    limit = getattr(encoder.config, "max_position_embeddings", None) or max_length
    offset = (encoder.config.pad_token_id or 0) + 1 if "roberta" in encoder.config.model_type else 0
    encoder.max_seq_length = min(max_length, limit - offset)
    return Loaded(encoder=encoder, folder=folder, style=None)


def _is_cross_encoder(folder: Path) -> bool:
    path = folder / "config_sentence_transformers.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == "CrossEncoder"


def _load_decoder(checkpoint: Checkpoint, *, max_length: int, prompt: str | None, asked: str | None) -> Loaded:
    tokenizer = read_tokenizer(checkpoint)
    style = style_for(checkpoint, tokenizer, prompt)
    template = prompted_template(tokenizer, style, checkpoint.tokenizer_config)
    assert template.prompt is not None
    if asked is None:
        rules = Rules(max_length=min(max_length, checkpoint.max_length))
    elif template.prompt.question is not None:
        rules = Rules(max_length=min(max_length, checkpoint.max_length), question=asked)
    else:
        rules = Rules(max_length=min(max_length, checkpoint.max_length), instruction=asked)
    has_head = checkpoint.architecture.endswith("ForSequenceClassification")
    kind = AutoModelForSequenceClassification if has_head else AutoModelForCausalLM
    module = AskedDecoder(
        model=kind.from_pretrained(checkpoint.folder, dtype=torch.float32),
        pairs=PairTokenizer(LibraryTokenizer(tokenizer), template),
        rules=rules,
        answers=answer_ids(tokenizer, style),
    )
    return Loaded(
        encoder=CrossEncoder(modules=[module]), folder=checkpoint.folder, style=template.prompt.style or "its own"
    )


class AskedDecoder(Module):
    """A decoder whose score is the logit of an answer, less that of another if there are two, or that of its head."""

    def __init__(self, *, model: Any, pairs: PairTokenizer, rules: Rules, answers: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.max_seq_length = rules.max_length
        self._pairs = pairs
        self._rules = rules
        self._answers = tuple(answers)

    def preprocess(self, inputs: Sequence[Pair], prompt: str | None = None, **options: Any) -> dict[str, Tensor]:
        """Return ids and mask, (n_pairs, n_tokens), padded on the left so that each row ends at the last place."""
        encoded = self._pairs.encode([(query, passage) for query, passage in inputs], self._rules)
        rows = [torch.from_numpy(encoded.row(i).astype("int64")) for i in range(encoded.n_rows)]
        width = max(map(len, rows))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = row
            mask[i, width - len(row) :] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add the scores, (n_pairs, 1). Only the last state is multiplied with rows of the vocabulary."""
        places = (features["attention_mask"].cumsum(1) - 1).clamp(min=0)
        states = self.model.base_model(
            input_ids=features["input_ids"],
            attention_mask=features["attention_mask"],
            position_ids=places,
            use_cache=False,
        ).last_hidden_state[:, -1]
        return {**features, "scores": (states @ self._vector().to(states.dtype))[:, None]}

    def save(self, output_path: str, *arguments: Any, safe_serialization: bool = True, **options: Any) -> None:
        """Write the model."""
        self.model.save_pretrained(output_path)

    def _vector(self) -> Tensor:
        if not self._answers:
            return self.model.score.weight[0]
        first, *second = (self.model.get_output_embeddings().weight[id_] for id_ in self._answers)
        return first - second[0] if second else first


def _merge_lora(model: Any) -> None:
    """Add adapters to the weights, and leave a model as if it had never had any."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
