"""The PyTorch model of a checkpoint: the reference that everything is compared with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.tokenizer import Pair
from rankrt_export.checkpoint import Checkpoint
from rankrt_export.errors import CheckpointError

# What transformers makes of a pair: input_ids and whatever else the model takes.
Row: TypeAlias = Mapping[str, Sequence[int]]


def load_model(checkpoint: Checkpoint) -> Any:
    """Return transformers' model in fp32, ready to score.

    Raises CheckpointError if it cannot be loaded, or if weights are missing: transformers would draw them at random.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            checkpoint.folder, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.folder}: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{checkpoint.folder} lacks the weights {', '.join(missing)}: its scores would be random")
    return model.eval()


def tokenized(checkpoint: Checkpoint, pairs: Sequence[Pair], max_length: int) -> list[Row]:
    """Return the rows that the checkpoint's own tokenizer makes of pairs, cut longest first."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    # A list of pairs, because transformers takes a lone ("query", "") for a text without a second one.
    rows = tokenizer(list(pairs), truncation="longest_first", max_length=max_length)
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
