"""The PyTorch model of a checkpoint: the reference that everything is compared with."""

from typing import Any

from rankrt_export.checkpoint import Checkpoint
from rankrt_export.errors import CheckpointError


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
