"""Where a decoder's score is read: after which layers, and by which vector of the checkpoint."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.weights import read
from rankrt_export.decoders.prompts import answer_ids
from rankrt_export.decoders.styles import Style
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Readout

LAYERWISE = "LayerWiseMiniCPMForCausalLM"
# A layerwise model is cut after every so many layers unless the user says where.
_EVERY = 4


def readouts_of(
    checkpoint: Checkpoint, tokenizer: Tokenizer, style: Style, cutoff_layers: Sequence[int] | None
) -> list[Readout]:
    """Return the readouts at the cutoff layers, in ascending order, or at those that suit the model.

    Raises CheckpointError for a checkpoint without heads or answers, and for a layer that has no head.
    """
    n_layers = int(checkpoint.config["num_hidden_layers"])
    if checkpoint.architecture == LAYERWISE:
        return _layerwise(checkpoint, n_layers, cutoff_layers)
    if cutoff_layers is not None and set(cutoff_layers) != {n_layers}:
        raise CheckpointError(
            f"cutoff layers {_listed(cutoff_layers)}: a {checkpoint.architecture} has one head, after its last layer"
            f" ({n_layers}); only layerwise models have more"
        )
    return [Readout(layer=n_layers, vector=_last_vector(checkpoint, tokenizer, style))]


def _layerwise(checkpoint: Checkpoint, n_layers: int, cutoff_layers: Sequence[int] | None) -> list[Readout]:
    start, kind = int(checkpoint.config.get("start_layer", 8)), checkpoint.config.get("head_type", "simple")
    if kind != "simple":
        raise CheckpointError(f"config.json has head_type = {kind!r}: that is a base model, whose heads rank nothing")
    layers = sorted(set(cutoff_layers or [*range(start, n_layers, _EVERY), n_layers]))
    if wrong := [layer for layer in layers if not start <= layer <= n_layers]:
        raise CheckpointError(
            f"cutoff layers {_listed(wrong)}: this model has heads after layers {start} to {n_layers}"
        )
    is_shared = not checkpoint.config.get("head_multi", True)
    names = ["lm_head.linear_head.weight" if is_shared else f"lm_head.{n - start}.linear_head.weight" for n in layers]
    if missing := [name for name in names if name not in checkpoint.weights.names]:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the heads {', '.join(missing)}: it is a base model, or not a layerwise reranker"
        )
    return [
        Readout(layer=layer, vector=read(checkpoint.weights, name)[0])
        for layer, name in zip(layers, names, strict=True)
    ]


def _last_vector(checkpoint: Checkpoint, tokenizer: Tokenizer, style: Style) -> Float32Array:
    if checkpoint.architecture.endswith("ForSequenceClassification"):
        return np.asarray(read(checkpoint.weights, "score.weight")[0])
    table = _vocabulary_matrix(checkpoint)
    rows = [checkpoint.weights.part(table, slice(i, i + 1))[0] for i in answer_ids(tokenizer, style)]
    return np.asarray(rows[0] - rows[1] if len(rows) > 1 else rows[0], np.float32)


def _vocabulary_matrix(checkpoint: Checkpoint) -> str:
    """Return the name of the output matrix, which may be the table of embeddings."""
    if "lm_head.weight" in checkpoint.weights.names:
        return "lm_head.weight"
    # Not written in config.json where it is the family's default, as for Gemma.
    if not checkpoint.config.get("tie_word_embeddings", checkpoint.config["model_type"] == "gemma"):
        raise CheckpointError(
            f"{checkpoint.folder} has no lm_head.weight, and config.json does not tie it to the embeddings: it is a"
            " base model without a head, which gives no scores"
        )
    return "model.embed_tokens.weight"


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
