"""Listwise fine-tuning of a cross-encoder. It counts steps, not minutes, so the same machine gives the same weights.

Knows batches of groups and a model that scores rows, but not the making of either. A model with several scores a row,
such as one for each layer, trains with the same loss: its `score` returns (..., n_rows).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch.nn import functional
from tqdm import tqdm

from tiny_reranker.batches import Batch

Score: TypeAlias = Callable[[Any, Batch], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The number of steps, and the size of each.

    learning_rate      rises over `n_warmup` steps, then falls as half a cosine to `last_rate` of itself
    embedding_rate     of the learning rate, for the embeddings
    pointwise_weight   of the pointwise loss, which keeps logits comparable between questions; the listwise one has 1
    longest_gradient   longer gradients are scaled to this
    """

    n_steps: int
    learning_rate: float = 1e-3
    embedding_rate: float = 0.6
    n_warmup: int = 30
    last_rate: float = 0.03
    pointwise_weight: float = 0.25
    longest_gradient: float = 1.0

    def rate(self, step: int) -> float:
        """Return a step's share of the learning rate."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
        return min(1.0, (step + 1) / self.n_warmup) * (self.last_rate + (1 - self.last_rate) * cosine)


def classifier_scores(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of a sequence classifier with one label, (n_rows,)."""
    return model(batch.ids, attention_mask=batch.mask).logits[:, 0].float()


def train(model: Any, batches: Iterable[Batch], schedule: Schedule, score: Score = classifier_scores) -> None:
    """Fine-tune the model in place, with a progress bar of the loss and of relevant passages in first place."""
    optimizer = _optimizer(model, schedule)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.rate)
    model.train()
    progress = tqdm(islice(batches, schedule.n_steps), total=schedule.n_steps, desc="train", unit="step")
    for batch in progress:
        scores = in_groups(score(model, batch), batch.n_groups)
        optimizer.zero_grad(set_to_none=True)
        loss(scores, schedule.pointwise_weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.longest_gradient)
        optimizer.step()
        scheduler.step()
        _report(progress, scores.detach())
    model.eval()


def loss(scores: torch.Tensor, pointwise_weight: float) -> torch.Tensor:
    """Return the listwise plus the weighted pointwise cross-entropy of (n, group size) scores, relevant first."""
    n_groups, size = scores.shape
    listwise = functional.cross_entropy(scores, torch.zeros(n_groups, dtype=torch.long))
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    # A relevant passage has the weight of all others of its group.
    pointwise = functional.binary_cross_entropy_with_logits(scores, labels, pos_weight=torch.tensor(size - 1.0))
    return listwise + pointwise_weight * pointwise


def in_groups(scores: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Bring scores of rows, (..., n_groups * size), into groups, (n, size)."""
    return scores.reshape(-1, scores.shape[-1] // n_groups)


def _optimizer(model: Any, schedule: Schedule) -> Any:
    embeddings = [weight for name, weight in model.named_parameters() if "embeddings" in name]
    others = [weight for name, weight in model.named_parameters() if "embeddings" not in name]
    rate = schedule.learning_rate
    groups = [{"params": embeddings, "lr": rate * schedule.embedding_rate}, {"params": others, "lr": rate}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def _report(progress: Any, scores: torch.Tensor) -> None:
    """Show the running means of about the last 100 steps."""
    listwise = float(loss(scores, pointwise_weight=0.0))
    first = float((scores.argmax(1) == 0).float().mean())
    mean_loss, mean_first = getattr(progress, "means", (listwise, first))
    progress.means = (0.99 * mean_loss + 0.01 * listwise, 0.99 * mean_first + 0.01 * first)
    progress.set_postfix_str(f"loss {progress.means[0]:.3f}, first {progress.means[1]:.1%}", refresh=False)
