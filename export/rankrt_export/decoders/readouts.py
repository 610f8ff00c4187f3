"""Where a decoder's score is read: after which layers, and by which vector of the checkpoint."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.families import DECODERS, LAYERWISE, LIGHTWEIGHT
from rankrt_export.checkpoint.weights import read
from rankrt_export.decoders.prompts import answer_ids
from rankrt_export.decoders.styles import Style
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Readout

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
    if checkpoint.architecture == LIGHTWEIGHT:
        return _lightweight(checkpoint, n_layers, cutoff_layers)
    if cutoff_layers is not None and set(cutoff_layers) != {n_layers}:
        raise CheckpointError(
            f"cutoff layers {_listed(cutoff_layers)}: a {checkpoint.architecture} has one head, after its last layer"
            f" ({n_layers}); only layerwise models have more"
        )
    return [_last(checkpoint, tokenizer, style, n_layers)]


def _layerwise(checkpoint: Checkpoint, n_layers: int, cutoff_layers: Sequence[int] | None) -> list[Readout]:
    start, kind = int(checkpoint.config.get("start_layer", 8)), checkpoint.config.get("head_type", "simple")
    if kind != "simple":
        raise CheckpointError(f"config.json has head_type = {kind!r}: that is a base model, whose heads rank nothing")
    layers = sorted(set(cutoff_layers or [*range(start, n_layers, _EVERY), n_layers]))
    _check_layers(layers, range(start, n_layers + 1))
    is_shared = not checkpoint.config.get("head_multi", True)
    names = ["lm_head.linear_head.weight" if is_shared else f"lm_head.{n - start}.linear_head.weight" for n in layers]
    _check_heads(checkpoint, names)
    return [
        Readout(layer=layer, vector=read(checkpoint.weights, name)[0])
        for layer, name in zip(layers, names, strict=True)
    ]


def _lightweight(checkpoint: Checkpoint, n_layers: int, cutoff_layers: Sequence[int] | None) -> list[Readout]:
    """Return the readouts of FlagEmbedding 1.4.2: the first cutoff layer by the first head, the second by the second.

    The heads were trained for the layers from `start_layer` on. But FlagEmbedding takes them by the place of a layer
    among those that a call names. So does the code in the model's repository.
    """
    start, step = int(checkpoint.config.get("start_layer", 28)), int(checkpoint.config.get("layer_sep", 28))
    if not checkpoint.config.get("layer_wise", False):
        raise CheckpointError(
            "config.json does not have layer_wise = true, so this model lacks the heads that FlagEmbedding reads scores"
            " from"
        )
    layers = sorted(set(cutoff_layers or [n_layers]))
    _check_layers(layers, range(start, n_layers + 1, step))
    names = [f"lm_head.{place}.linear_head.weight" for place in range(len(layers))]
    _check_heads(checkpoint, names)
    cap = _logit_cap(checkpoint)
    return [
        Readout(layer=layer, vector=read(checkpoint.weights, name)[0], cap=cap)
        for layer, name in zip(layers, names, strict=True)
    ]


def _check_layers(layers: Sequence[int], known: range) -> None:
    if wrong := [layer for layer in layers if layer not in known]:
        every = f", every {known.step} layers" if known.step > 1 else ""
        raise CheckpointError(
            f"cutoff layers {_listed(wrong)}: this model has heads after layers {known[0]} to {known[-1]}{every}"
        )


def _check_heads(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in checkpoint.weights.names]:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the heads {', '.join(missing)}: it is a base model, or not a layerwise reranker"
        )


def _last(checkpoint: Checkpoint, tokenizer: Tokenizer, style: Style, n_layers: int) -> Readout:
    if checkpoint.has_head:
        return Readout(layer=n_layers, vector=np.asarray(read(checkpoint.weights, "score.weight")[0]))
    table, cap = _vocabulary_matrix(checkpoint), _logit_cap(checkpoint)
    rows = [checkpoint.weights.part(table, slice(i, i + 1))[0] for i in answer_ids(tokenizer, style)]
    vectors = [np.asarray(row, np.float32) for row in rows]
    if len(rows) == 1 or cap is not None:
        return Readout(layer=n_layers, vector=vectors[0], cap=cap, subtracted=vectors[1] if len(rows) > 1 else None)
    return Readout(layer=n_layers, vector=np.asarray(rows[0] - rows[1], np.float32))


def _logit_cap(checkpoint: Checkpoint) -> float | None:
    """Return the bound of Gemma 2's logits; its configuration has 30 where the file does not say it."""
    if DECODERS[checkpoint.architecture] != "gemma2":
        return None
    cap = checkpoint.config.get("final_logit_softcapping", 30.0)
    return None if cap is None else float(cap)


def _vocabulary_matrix(checkpoint: Checkpoint) -> str:
    """Return the name of the output matrix, which may be the table of embeddings."""
    if "lm_head.weight" in checkpoint.weights.names:
        return "lm_head.weight"
    # Not written in config.json where it is the family's default, as for Gemma.
    if not checkpoint.config.get("tie_word_embeddings", checkpoint.config["model_type"] in ("gemma", "gemma2")):
        raise CheckpointError(
            f"{checkpoint.folder} has no lm_head.weight, and config.json does not tie it to the embeddings: it is a"
            " base model without a head, which gives no scores"
        )
    return "model.embed_tokens.weight"


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
