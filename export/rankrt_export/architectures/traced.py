"""Any other cross-encoder: the graph that torch.onnx traces.

It is slower than a written graph, since nothing is left out and rows run together only if they have one length. It is
fp32 only. But it takes what transformers takes, and is verified the same way. The exporter is torch.export's. The older
TorchScript one gave logits that were wrong by up to 0.02 for BERT, ELECTRA and ALBERT, without a word.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.tokenizer import has_token_types
from rankrt_export.errors import CheckpointError
from rankrt_export.reference.pytorch import load_model

DATA = "traced.fp32.data"
_EXTERNAL_BYTES = 1024


def trace(checkpoint: Checkpoint, path: Path) -> None:
    """Write the graph of a checkpoint, with its weights in a data file beside it.

    Inputs are input_ids and, where the model has them, token_type_ids, both (n_rows, n_tokens) in int64. The output is
    logits, (n_rows,). Raises CheckpointError if transformers cannot load the model or torch cannot trace it.
    """
    import torch

    model = _row_scorer(checkpoint)
    ids = torch.arange(3, 25).reshape(2, 11)  # neither dimension is 1, which would be taken for a constant
    names = ["input_ids", "token_type_ids"][: 1 + has_token_types(checkpoint)]
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                tuple([ids, torch.zeros_like(ids)][: len(names)]),
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=tuple([any_size] * len(names)),
            )
    except Exception as error:
        raise CheckpointError(f"torch cannot trace {checkpoint.architecture}: {str(error).splitlines()[0]}") from error
    ir.save(program.model, path, external_data=DATA, size_threshold_bytes=_EXTERNAL_BYTES)


def _row_scorer(checkpoint: Checkpoint) -> Any:
    """Return a module that scores rows of one length, which need no mask."""
    import torch

    class RowScorer(torch.nn.Module):  # type: ignore[misc]  # torch is untyped to mypy here
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            mask = torch.ones_like(input_ids)
            return self.model(input_ids=input_ids, attention_mask=mask, **types).logits[:, 0]

    return RowScorer(load_model(checkpoint)).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's progress notes and deprecation warnings, which no user can act on, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
