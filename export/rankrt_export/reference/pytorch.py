"""The PyTorch model of a checkpoint: the reference that everything is compared with."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.text.pairs import Pair
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.head import Dense, Head
from rankrt_export.checkpoint.weights import read
from rankrt_export.errors import CheckpointError

# What transformers makes of a pair: input_ids and whatever else the model takes.
Row: TypeAlias = Mapping[str, Sequence[int]]


def load_model(checkpoint: Checkpoint) -> Any:
    """Return transformers' model in fp32, ready to score.

    Raises CheckpointError if it cannot be loaded, or if weights are missing: transformers would draw them at random.
    """
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not checkpoint.is_loadable:
        return _filled(checkpoint)
    kind = AutoModelForSequenceClassification if checkpoint.saved.head is None else AutoModel
    try:
        model, found = kind.from_pretrained(
            checkpoint.folder,
            config=config_of(checkpoint),
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.folder}: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{checkpoint.folder} lacks the weights {', '.join(missing)}: its scores would be random")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (n := int((~tensor.isfinite()).sum())):
            raise CheckpointError(
                f"{checkpoint.folder} is damaged: {name} has {n} values of {tensor.numel()} that are NaN or infinity"
            )
    return (model if checkpoint.saved.head is None else _with_head(model, checkpoint.saved.head)).eval()


def _filled(checkpoint: Checkpoint) -> Any:
    """Return transformers' model with the weights that we read: it does not know the names that are stored."""
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        model = AutoModelForSequenceClassification.from_config(config_of(checkpoint), dtype=torch.float32)
        with torch.no_grad():
            for name, values in model.named_parameters():
                values.copy_(torch.from_numpy(read(checkpoint.weights, name)))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.folder} does not have the weights of its config.json: {first_line(error)}"
        ) from error
    return model.eval()


def _with_head(model: Any, head: Head) -> Any:
    """Return a model with the modules that sentence-transformers puts after it, for rows without padding."""
    import torch
    from torch.nn import functional

    class Scorer(torch.nn.Module):  # type: ignore[misc]  # torch is untyped to mypy here
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **row: Any) -> Any:
            states = self.model(**row).last_hidden_state
            x = states[:, 0] if head.pooling == "cls" else states.mean(dim=1)
            for layer in head.layers:
                if isinstance(layer, Dense):
                    bias = None if layer.bias is None else torch.from_numpy(layer.bias)
                    x = functional.linear(x, torch.from_numpy(layer.weight), bias)
                    x = x if layer.activation == "identity" else getattr(functional, layer.activation)(x)
                else:
                    scale, bias = (None if a is None else torch.from_numpy(a) for a in (layer.scale, layer.bias))
                    x = functional.layer_norm(x, x.shape[-1:], scale, bias, layer.epsilon)
            return SimpleNamespace(logits=x)

    return Scorer()


def config_of(checkpoint: Checkpoint) -> Any:
    """Return transformers' configuration. It is made of the fields that are there: on num_labels = null 5.24 fails.

    Raises CheckpointError if the transformers that is installed does not know such a model.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    if (kind := checkpoint.config["model_type"]) not in CONFIG_MAPPING:
        raise CheckpointError(f"transformers {__version__} does not know model_type = {kind!r}; a newer one may")
    return AutoConfig.for_model(**checkpoint.config)


def first_line(error: Exception) -> str:
    """Return the first line of an error. transformers adds advice on its own options."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def tokenized(checkpoint: Checkpoint, pairs: Sequence[Pair], max_length: int) -> list[Row]:
    """Return the rows that the checkpoint's own tokenizer makes of pairs, cut longest first."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, config=config_of(checkpoint), trust_remote_code=False
        )
    except Exception as error:
        raise CheckpointError(
            f"transformers cannot load the tokenizer of {checkpoint.folder}: {first_line(error)}"
        ) from error
    # A list of pairs, because transformers takes a lone ("query", "") for a text without a second one.
    prompted = [(checkpoint.saved.default_prompt + query, passage) for query, passage in pairs]
    rows = tokenizer(prompted, truncation="longest_first", max_length=max_length)
    return [{key: values[i] for key, values in rows.items()} for i in range(len(pairs))]


def scores(model: Any, rows: Sequence[Row], progress: Callable[[int], None]) -> Float32Array:
    """Return the model's logit for each row alone, without padding, (n_rows,); `progress` is told of each row done."""
    import torch

    logits = np.empty(len(rows), np.float32)
    with torch.inference_mode():
        for i, row in enumerate(rows):
            logits[i] = model(**tensors(row)).logits[0, 0].item()
            progress(1)
    return logits


def tensors(row: Row) -> dict[str, Any]:
    """Return a row as the batch of one that the model takes."""
    import torch

    return {key: torch.tensor([values]) for key, values in row.items()}
