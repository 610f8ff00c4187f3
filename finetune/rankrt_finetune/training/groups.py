"""The batches of a run: which queries a step takes, and which of their passages.

Everything is a function of the seed, the epoch and the query's number. So a run that continues from a checkpoint sees
what it would have seen without a stop.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset, Features, Value, disable_progress_bars
from datasets import List as ListOf
from datasets.exceptions import DatasetGenerationError
from sentence_transformers.base.sampler import DefaultBatchSampler

from rankrt.errors import InputError, RankrtError
from rankrt_finetune.data.examples import Example
from rankrt_finetune.training.recipe import FROM_SCORES, LossName

_NUMBERS, _TEXTS = ListOf(Value("float64")), ListOf(Value("string"))
_FEATURES = Features(
    {"number": Value("int64"), "query": Value("string")}
    | dict.fromkeys(("pos", "neg"), _TEXTS)
    | dict.fromkeys(("pos_scores", "neg_scores"), _NUMBERS)
)


def stored(examples: Iterator[Example], folder: Path) -> Dataset:
    """Write examples into a folder, from which they are read as they are needed: they may be larger than memory."""
    disable_progress_bars()
    if (first := next(examples, None)) is None:
        return Dataset.from_dict({name: [] for name in _FEATURES}, features=_FEATURES)

    def rows() -> Iterator[dict[str, Any]]:
        for number, example in enumerate(chain([first], examples)):
            yield {
                "number": number,
                "query": example.query,
                "pos": example.pos,
                "neg": example.neg,
                "pos_scores": example.pos_scores or (),
                "neg_scores": example.neg_scores or (),
            }

    try:
        return Dataset.from_generator(rows, features=_FEATURES, cache_dir=str(folder), fingerprint="examples")
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, RankrtError):
            raise error.__cause__ from error
        raise


@dataclass(slots=True, kw_only=True)
class Groups:
    """Makes a batch of examples: for each a positive and negatives. It is the Trainer's collator.

    epoch   set by the sampler as an epoch begins
    """

    loss: LossName
    group_size: int
    seed: int
    epoch: int = 0
    valid_label_columns: Sequence[str] = field(default_factory=list)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return queries, their passages, and labels: for most losses 1 and 0, for others the teacher's scores."""
        drawn = [self._draw(row) for row in rows]
        return {
            "query": [row["query"] for row in rows],
            "passages": [passages for passages, _ in drawn],
            "label": [torch.tensor(labels) for _, labels in drawn],
        }

    def _draw(self, row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        random = Random(f"{self.seed} {self.epoch} {row['number']}")
        positive = random.randrange(len(row["pos"]))
        negatives = random.sample(range(len(row["neg"])), min(self.group_size - 1, len(row["neg"])))
        passages = [row["pos"][positive], *(row["neg"][i] for i in negatives)]
        if self.loss in FROM_SCORES:
            return passages, [row["pos_scores"][positive], *(row["neg_scores"][i] for i in negatives)]
        return passages, [1.0] + [0.0] * len(negatives)


def sampler_for(groups: Groups) -> Any:
    """Return the Trainer's batch sampler: each epoch has an order of its own, and tells the groups its number."""

    class Order(DefaultBatchSampler):
        def set_epoch(self, epoch: int) -> None:
            self.epoch = groups.epoch = epoch

        def __iter__(self) -> Iterator[list[int]]:
            numbers = list(range(len(self.sampler)))
            Random(f"{groups.seed} {self.epoch}").shuffle(numbers)
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    return Order


def trainable(examples: Iterator[Example], loss: LossName) -> Iterator[Example]:
    """Yield the examples that a loss can learn from, which have negatives.

    Raises InputError, with the line, for an example without scores if the loss needs them.
    """
    for example in examples:
        if loss in FROM_SCORES and example.scores is None:
            raise InputError(
                f"{example.place} has no pos_scores and neg_scores, which --loss {loss} learns from. Add them with:"
                " rankrt teach"
            )
        if example.neg:
            yield example
