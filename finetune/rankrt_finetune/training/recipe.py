"""What a training run is asked for. Knows no model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

LossName: TypeAlias = Literal["softmax", "bce", "lambda", "listnet", "distill", "mse"]
LOSSES: tuple[LossName, ...] = get_args(LossName)
# Of these the labels are a teacher's scores.
FROM_SCORES: tuple[LossName, ...] = ("distill", "mse")
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters in the place of all weights: rank, scale (alpha / rank) and dropout, by peft."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained.

    loss            see `losses`
    epochs          passes over the queries
    batch_size      queries of a step on a device
    group_size      passages of a query in a step: a positive and negatives; each epoch draws others
    accumulate      steps whose gradients are added before the weights change
    learning_rate   at its highest; None is 2e-5, with LoRA 1e-4
    warmup          share of the run in which the rate rises; then it falls to zero, both linearly
    weight_decay    of AdamW
    max_length      tokens of a row; longer ones are cut as sentence-transformers does, the longer text first
    lora            None trains all weights
    precision       auto is bf16 where a GPU has it, else fp16 on a GPU, and fp32 on a CPU
    checkpointing   compute activations twice, which takes less memory
    evaluate_every  changes of the weights between two evaluations and checkpoints; None is a tenth of the run
    patience        evaluations without a better result until the run stops; None never stops early
    seed            of the order, the draws, a new head and dropout
    report_to       what the Trainer reports to besides the console, such as tensorboard or wandb
    """

    loss: LossName = "softmax"
    epochs: float = 1.0
    batch_size: int = 4
    group_size: int = 8
    accumulate: int = 1
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 512
    lora: Lora | None = None
    precision: Precision = "auto"
    checkpointing: bool = False
    evaluate_every: int | None = None
    patience: int | None = None
    seed: int = 0
    report_to: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or (2e-5 if self.lora is None else 1e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A run: a checkpoint, examples to train on, and examples to evaluate with.

    evaluate   a file of examples; None evaluates with `hold_out`, a share of the queries of `train`
    prompt     how a decoder is asked, by the name of a style; None where its files say it
    """

    checkpoint: str
    train: Path
    out: Path
    evaluate: Path | None = None
    hold_out: float = 0.0
    prompt: str | None = None
