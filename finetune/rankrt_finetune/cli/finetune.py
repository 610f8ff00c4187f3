"""`rankrt finetune`: a reranker that is trained on examples, and measured on others."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rankrt.cli import terminal
from rankrt.cli.arguments import Choice, Command, Real, Whole, file_argument, file_option, list_option, option
from rankrt_export.decoders.styles import STYLES
from rankrt_finetune.training.recipe import LOSSES, PRECISIONS, Lora, Recipe, Task

_DEFAULT = Recipe()


@click.command(
    "finetune",
    cls=Command,
    epilog="Example: rankrt finetune BAAI/bge-reranker-v2-m3 taught.jsonl --evaluate dev.jsonl -o ./tuned",
)
@file_argument("checkpoint", help="A folder with a Hugging Face checkpoint, or a Hub id.")
@file_argument("examples", help='Lines or columns of {"query", "pos", "neg"}, or labelled pairs or triplets.')
@option("-o", "--output", required=True, metavar="FOLDER", help="The folder to write; it must not exist.")
@file_option("--evaluate", group="Data", help="Examples that are held out, to evaluate with.")
@option(
    "--hold-out",
    type=Real(0, 0.9),
    default=0.0,
    group="Data",
    metavar="X",
    help="Share of the queries of the examples that are held out in the place of --evaluate.",
)
@option(
    "--loss",
    type=Choice(LOSSES),
    default=_DEFAULT.loss,
    group="Training",
    help="Loss function. distill and mse learn from pos_scores and neg_scores.",
)
@option(
    "--epochs",
    type=Real(above=0),
    default=_DEFAULT.epochs,
    group="Training",
    metavar="N",
    help="Passes over the queries.",
)
@option(
    "--batch-size", type=Whole(), default=_DEFAULT.batch_size, group="Training", metavar="N", help="Queries of a step."
)
@option(
    "--group-size",
    type=Whole(2),
    default=_DEFAULT.group_size,
    group="Training",
    metavar="N",
    help="Passages of a query in a step: one positive, and negatives.",
)
@option(
    "--accumulate",
    type=Whole(),
    default=_DEFAULT.accumulate,
    group="Training",
    metavar="N",
    help="Steps whose gradients are added before the weights change.",
)
@option(
    "--learning-rate",
    type=Real(above=0),
    group="Training",
    metavar="X",
    help="Highest learning rate.",
    show_default="2e-5, with --lora 1e-4",
)
@option(
    "--warmup",
    type=Real(0, 1),
    default=_DEFAULT.warmup,
    group="Training",
    metavar="X",
    help="Share of the steps in which the rate rises.",
)
@option(
    "--weight-decay",
    type=Real(0),
    default=_DEFAULT.weight_decay,
    group="Training",
    metavar="X",
    help="Weight decay of AdamW.",
)
@option(
    "--max-length",
    type=Whole(8),
    default=_DEFAULT.max_length,
    group="Training",
    metavar="N",
    help="Most tokens of a row.",
)
@option("--seed", type=Whole(0), default=_DEFAULT.seed, group="Training", metavar="N", help="Seed of everything drawn.")
@option("--lora", is_flag=True, group="Memory", help="Train adapters, which are merged into the result.")
@option("--lora-rank", type=Whole(), default=Lora().rank, group="Memory", metavar="N", help="Rank of the adapters.")
@option(
    "--lora-alpha",
    type=Whole(),
    default=Lora().alpha,
    group="Memory",
    metavar="N",
    help="Scale of the adapters, times the rank.",
)
@option(
    "--precision",
    type=Choice(PRECISIONS),
    default=_DEFAULT.precision,
    group="Memory",
    help="auto is bf16 or fp16 on a GPU, fp32 on a CPU.",
)
@option("--checkpointing", is_flag=True, group="Memory", help="Compute activations twice, to keep fewer of them.")
@option(
    "--evaluate-every",
    type=Whole(),
    group="Run",
    metavar="N",
    help="Steps between evaluations and checkpoints.",
    show_default="a tenth of the run",
)
@option(
    "--patience",
    type=Whole(),
    group="Run",
    metavar="N",
    help="Stop after so many evaluations without a better result.",
    show_default="never",
)
@option("--resume", is_flag=True, group="Run", help="Continue a run that was stopped.")
@list_option(
    "--report-to",
    each=Choice(["tensorboard", "wandb", "trackio", "mlflow"]),
    group="Run",
    metavar="T...",
    help="Where the Trainer reports to: tensorboard, wandb, trackio or mlflow, which have to be installed.",
    show_default="nowhere",
)
@option(
    "--prompt",
    type=Choice(STYLES),
    group="Decoders",
    help="How a decoder is asked. It is needed where neither the model's files nor its name say it.",
)
def finetune(
    checkpoint: str,
    examples: str,
    output: str,
    evaluate: str | None,
    hold_out: float,
    lora: bool,
    lora_rank: int,
    lora_alpha: int,
    resume: bool,
    report_to: Sequence[str] | None,
    prompt: str | None,
    **recipe: Any,
) -> None:
    """Train, and print the quality before and after."""
    if evaluate is not None and hold_out:
        raise click.UsageError("--evaluate and --hold-out exclude each other", click.get_current_context())
    from rankrt_finetune.training.quality import MRR, NDCG
    from rankrt_finetune.training.run import finetune as train

    task = Task(
        checkpoint=checkpoint,
        train=Path(examples),
        out=Path(output),
        evaluate=Path(evaluate) if evaluate else None,
        hold_out=hold_out,
        prompt=prompt,
    )
    asked = Recipe(
        lora=Lora(rank=lora_rank, alpha=lora_alpha) if lora else None, report_to=tuple(report_to or ()), **recipe
    )
    with terminal.bar(None, "step") as bar:
        counter = terminal.Counter(bar)

        def show(n_done: int, n_steps: int) -> None:
            bar.total = n_steps
            counter.update(n_done - counter.n_done)

        outcome = train(task, asked, resume=resume, on_progress=show)
    if outcome.before is not None and outcome.after is not None:
        for name in (NDCG, MRR):
            print(f"{name:8} {outcome.before[name]:.4f} before, {outcome.after[name]:.4f} after")
        if outcome.after[NDCG] < outcome.before[NDCG]:
            print(
                f"rankrt: the held-out {NDCG} fell; try a lower --learning-rate, fewer --epochs or harder negatives",
                file=sys.stderr,
            )
    print(f"{output}: {outcome.n_train} examples, {outcome.n_steps} steps, the weights after {outcome.best_step}")
