"""The model card of a fine-tuned checkpoint: what it came from, the data, the quality before and after, versions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version

from rankrt.artifact.source import local_folder
from rankrt_finetune.data.split import Overlap
from rankrt_finetune.training.quality import MRR, NDCG
from rankrt_finetune.training.recipe import Recipe, Task

_PACKAGES = ("rankrt", "torch", "transformers", "sentence-transformers", "accelerate", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did.

    n_train, n_held_out  examples
    n_left_out           examples without negatives, which taught nothing
    overlap              what stands in both parts
    before, after        the quality on the held-out part; None without one
    n_steps, best_step   changes of the weights, and the one whose weights are written
    style                how a decoder was asked
    """

    n_train: int
    n_held_out: int
    n_left_out: int
    overlap: Overlap | None
    before: Mapping[str, float] | None
    after: Mapping[str, float] | None
    n_steps: int
    best_step: int
    style: str | None


def card(task: Task, recipe: Recipe, outcome: Outcome) -> str:
    """Return the card as Markdown. It names files and folders by their last part only."""
    base = task.checkpoint if local_folder(task.checkpoint) is None else None  # it was loaded, so it is on the hub
    front = ["---", "pipeline_tag: text-ranking", "tags: [reranker, cross-encoder, rankrt]"]
    front += [f"base_model: {base}"] if base else []
    rows = {key: value for key, value in asdict(recipe).items() if value not in (None, ())}
    rows |= {"learning_rate": recipe.rate, "prompt": outcome.style} if outcome.style else {"learning_rate": recipe.rate}
    parts = [
        *front,
        "---",
        "",
        f"# {task.out.name}",
        "",
        f"A reranker that was fine-tuned from {base or task.checkpoint.rstrip('/').rpartition('/')[2]} with"
        " `rankrt finetune`.",
        "",
        "## Quality",
        "",
        *_quality(outcome),
        "",
        "## Data",
        "",
        f"{outcome.n_train:,} examples of {task.train.name}"
        f"{f', without {outcome.n_left_out:,} that have no negatives' if outcome.n_left_out else ''}."
        f" Held out: {outcome.n_held_out:,} examples of {_held_out(task)}.",
        *_overlap(outcome),
        "",
        "## Training",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in sorted(rows.items())),
        f"| steps | {outcome.n_steps}, of which the weights after {outcome.best_step} are kept |",
        "",
        "## Use",
        "",
        "```",
        f"rankrt export ./{task.out.name} ./{task.out.name}.rk --precision fp32 int8{_prompt(outcome)}",
        "```",
        "",
        f"Versions: {', '.join(f'{name} {version(name)}' for name in _PACKAGES)}.",
        "",
    ]
    return "\n".join(parts)


def _prompt(outcome: Outcome) -> str:
    return f" --prompt {outcome.style}" if outcome.style and outcome.style != "chat template" else ""


def _held_out(task: Task) -> str:
    return task.evaluate.name if task.evaluate else f"{task.train.name} ({task.hold_out:.0%} of its queries)"


def _quality(outcome: Outcome) -> list[str]:
    if outcome.before is None or outcome.after is None:
        return ["It was not measured: no examples were held out."]
    rows = [f"| {name} | {outcome.before[name]:.4f} | {outcome.after[name]:.4f} |" for name in (NDCG, MRR)]
    return ["| held-out examples | before | after |", "|---|---|---|", *rows]


def _overlap(outcome: Outcome) -> list[str]:
    found = outcome.overlap
    if found is None or not (found.n_queries or found.n_positives):
        return []
    return [
        "",
        f"{found.n_queries:,} examples have a query that is held out too, and {found.n_positives:,} a positive passage"
        " of a held-out query.",
    ]
