"""The losses by name, over groups of a positive and negatives.

softmax   cross-entropy of the positive among its group, as FlagEmbedding trains rerankers
bce       binary cross-entropy of each pair
lambda    LambdaLoss with the weights of NDCG-Loss2++
listnet   cross-entropy between the softmax of the labels and that of the logits
distill   the same with a teacher's scores as labels, which is FlagEmbedding's term for knowledge distillation
mse       the mean squared error between the logits and a teacher's scores
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.cross_encoder import losses
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, pad

from rankrt_finetune.training.recipe import LossName


def loss_for(name: LossName, model: Any) -> nn.Module:
    """Return the loss of that name over a CrossEncoder."""
    # A run's memory is a matter of its batch size, so a loss scores a batch in one pass.
    whole_batch: Mapping[str, Any] = {"mini_batch_size": -1}
    match name:
        case "lambda":
            return losses.LambdaLoss(model, **whole_batch)
        case "listnet" | "distill":
            return losses.ListNetLoss(model, **whole_batch)
        case _:
            return GroupLoss(model, _OF_GROUPS[name])


class GroupLoss(nn.Module):  # type: ignore[misc]  # torch is untyped to mypy here
    """A loss of the logits of groups, (n_groups, n_passages), which are -inf where a group is shorter."""

    def __init__(self, model: Any, of_groups: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._of_groups = of_groups

    def forward(
        self,
        inputs: Sequence[Sequence[Any]],
        labels: Sequence[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Return the loss of queries and their passages, called as the Trainer does."""
        queries, groups = inputs
        pairs = [(query, passage) for query, passages in zip(queries, groups, strict=True) for passage in passages]
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), self.model.device)
        logits = self.model(features)["scores"].view(-1).float()
        rows = logits.split([len(passages) for passages in groups])
        width = max(map(len, rows))
        padded = torch.stack([pad(row, (0, width - len(row)), value=float("-inf")) for row in rows])
        return self._of_groups(padded, [label.to(logits.device) for label in labels])


def _softmax(logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """The positive is the first of its group."""
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def _bce(logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
    return binary_cross_entropy_with_logits(logits[logits.isfinite()], torch.cat(list(labels)))


def _mse(logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
    return mse_loss(logits[logits.isfinite()], torch.cat(list(labels)))


_OF_GROUPS: Mapping[str, Callable[[Tensor, Sequence[Tensor]], Tensor]] = {
    "softmax": _softmax,
    "bce": _bce,
    "mse": _mse,
}
