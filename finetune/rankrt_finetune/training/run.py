"""A run: examples are stored, the model is trained and evaluated, and the best weights become a checkpoint.

While it runs, everything is in `.unfinished-OUT` beside the result: a record of what was asked, the examples, and the
checkpoints, of which the best and the last are kept. A run that was killed continues from the last one, and ends with
the weights of a run that was not. At the end the result takes the name OUT, and the rest is removed.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed
from transformers import logging as transformers_logging

from rankrt.artifact.manifest import sha256_of
from rankrt.cli.inputs import Place
from rankrt.errors import InputError
from rankrt.files.folders import lock_of
from rankrt_finetune.data.examples import Example, read_examples
from rankrt_finetune.data.split import Overlap, overlap, part
from rankrt_finetune.errors import MemoryShort, TrainingError
from rankrt_finetune.resuming import check_inputs, unfinished
from rankrt_finetune.training.card import Outcome, card
from rankrt_finetune.training.groups import Groups, sampler_for, stored, trainable
from rankrt_finetune.training.losses import loss_for
from rankrt_finetune.training.models import Loaded, load_model
from rankrt_finetune.training.quality import MRR, NDCG, Evaluator
from rankrt_finetune.training.recipe import Recipe, Task
from rankrt_finetune.training.watching import OnProgress, StopsAtCtrlC, Tells

_TRAINED, _STATE, _BEFORE = "trained.safetensors", "trainer_state.json", "before.json"

_logger = logging.getLogger("rankrt")


def finetune(
    task: Task, recipe: Recipe, *, resume: bool = False, on_progress: OnProgress = lambda n_done, n_steps: None
) -> Outcome:
    """Train a checkpoint and write the result into a folder that does not exist yet.

    `resume` continues a run of the same task and recipe that was stopped. `on_progress` is called with the steps that
    are done and those that there are. Raises InputError for what cannot be read or does not fit together, TrainingError
    for what cannot be trained, and KeyboardInterrupt after Ctrl-C, when a checkpoint was written.
    """
    task.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_of(task.out), timeout=0):
            outcome = _finetune(task, recipe, resume=resume, on_progress=on_progress)
            lock_of(task.out).unlink()
            return outcome
    except Timeout as error:
        raise InputError(f"{task.out} is being made by another process. Wait for it, or choose another name") from error


def _finetune(task: Task, recipe: Recipe, *, resume: bool, on_progress: OnProgress) -> Outcome:
    _check_reports(recipe)
    _quieten()
    folder = _begun(task, recipe, resume=resume)
    survey = _surveyed(_train(task, recipe))
    dataset = stored(trainable(_train(task, recipe), recipe.loss), folder / "examples")
    held_out, shared = _held_out(task, recipe)
    _check_data(task, len(dataset), survey, held_out, shared)

    set_seed(recipe.seed)
    loaded = load_model(task.checkpoint, max_length=recipe.max_length, prompt=task.prompt, asked=survey.prompt)
    if recipe.lora is not None:
        loaded.add_lora(recipe.lora)
    if recipe.checkpointing:
        loaded.compute_activations_twice()
    evaluator = Evaluator(held_out, recipe.batch_size * recipe.group_size) if held_out else None
    trainer = _trainer(loaded, dataset, evaluator, recipe, folder, on_progress)
    before = _before(folder, loaded, evaluator)
    _train_model(trainer, recipe, _last_checkpoint(folder) if resume else None)

    outcome = Outcome(
        n_train=len(dataset),
        n_held_out=len(held_out),
        n_left_out=survey.n_left_out,
        overlap=shared,
        before=before,
        after=_after(trainer),
        n_steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step or trainer.state.global_step,
        style=loaded.style,
    )
    _write(folder, loaded, task, recipe, outcome, trainer.state.log_history)
    return outcome


def _quieten() -> None:
    """Keep libraries from writing to the terminal and to anybody else."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)


def _begun(task: Task, recipe: Recipe, *, resume: bool) -> Path:
    """Return the folder of the run, new or as it was left. Raises InputError if it is not what was asked for."""
    if task.out.exists():
        raise InputError(f"{task.out} exists. Choose another folder, or remove it")
    folder = unfinished(task.out)
    if not resume:
        if any(folder.glob("checkpoint-*")):
            raise InputError(f"{task.out} was begun and is not finished. Continue with --resume, or remove {folder}")
        shutil.rmtree(folder, ignore_errors=True)  # it failed before there was anything to lose
    if not folder.exists() and resume:
        raise InputError(f"there is nothing to resume: {task.out} was not begun. Leave --resume out")
    made_from = {
        "examples": sha256_of(task.train),
        "held-out part": sha256_of(task.evaluate) if task.evaluate else task.hold_out,
        "checkpoint": task.checkpoint,
        "options": asdict(recipe) | {"prompt": task.prompt},
    }
    check_inputs(folder, task.out, made_from)
    return folder


def _check_reports(recipe: Recipe) -> None:
    """Raise TrainingError for a tracker that is not installed."""
    if missing := [name for name in recipe.report_to if find_spec(name) is None]:
        raise TrainingError(f"--report-to {missing[0]} needs {missing[0]}: pip install {missing[0]}")


def _train(task: Task, recipe: Recipe) -> Iterator[Example]:
    return part(read_examples(task.train), "train", task.hold_out, recipe.seed)


def _held_out(task: Task, recipe: Recipe) -> tuple[list[Example], Overlap | None]:
    """Return the examples to evaluate with, and what of them is trained on as well."""
    if task.evaluate is not None:
        found = [example for example in read_examples(task.evaluate) if example.neg]
        if not found:
            raise InputError(f"{task.evaluate} has no example with negatives, so every order of its passages is right")
    else:
        found = [
            example
            for example in part(read_examples(task.train), "held_out", task.hold_out, recipe.seed)
            if example.neg
        ]
    return found, overlap(_train(task, recipe), found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """What the examples to train on have in common: how many lack negatives, the first of these, and the prompt."""

    n_left_out: int
    first_left_out: Place | None
    prompt: str | None


def _surveyed(examples: Iterator[Example]) -> _Survey:
    """Look at all examples once. Raises InputError if they have several prompts: a model is asked with one."""
    n_left_out, first_left_out, first = 0, None, None
    for example in examples:
        first = first or example
        if example.prompt != first.prompt:
            raise InputError(f"{example.place} has another prompt than {first.place.short}; a model is asked with one")
        if not example.neg:
            n_left_out, first_left_out = n_left_out + 1, first_left_out or example.place
    return _Survey(n_left_out=n_left_out, first_left_out=first_left_out, prompt=None if first is None else first.prompt)


def _check_data(task: Task, n_train: int, survey: _Survey, held_out: Sequence[Example], shared: Overlap | None) -> None:
    """Raise InputError if there is nothing to learn from or to evaluate with; say what was left out or is shared."""
    if not n_train and survey.n_left_out:
        raise InputError(f"{task.train} has no negatives, so there is nothing to learn. Find some with: rankrt mine")
    if not n_train or (task.hold_out and not held_out):
        raise InputError(
            f"hold_out={task.hold_out} leaves {n_train} examples to train on and {len(held_out)} to evaluate with."
            " Give more queries, or a file with --evaluate"
        )
    if survey.n_left_out:
        _logger.warning(
            "left out %d examples without negatives, the first at %s; rankrt mine finds some",
            *(survey.n_left_out, survey.first_left_out),
        )
    if not held_out:
        _logger.warning("nothing is held out, so the result is not measured; see --evaluate and --hold-out")
    if shared is not None and shared.n_queries:
        _logger.warning(
            "%d examples have a query that is held out too, the first at %s: the quality will look better than it is",
            *(shared.n_queries, shared.first),
        )


class _Trainer(CrossEncoderTrainer):
    """The trainer with checkpoints of the trained weights alone, and without a card of its own."""

    def __init__(self, loaded: Loaded, **options: Any) -> None:
        self._loaded = loaded
        super().__init__(model=loaded.encoder, **options)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add nothing: its card asks the hub about the base model."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._loaded.save_trained(folder / _TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._loaded.load_trained(Path(resume_from_checkpoint) / _TRAINED)


def _trainer(
    loaded: Loaded, dataset: Any, evaluator: Evaluator | None, recipe: Recipe, folder: Path, on_progress: OnProgress
) -> _Trainer:
    groups = Groups(loss=recipe.loss, group_size=recipe.group_size, seed=recipe.seed)
    n_steps = ceil(ceil(ceil(len(dataset) / recipe.batch_size) / recipe.accumulate) * recipe.epochs)
    every = recipe.evaluate_every or max(1, n_steps // 10)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.rate,
        warmup_steps=ceil(n_steps * recipe.warmup),
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        batch_sampler=sampler_for(groups),
        eval_strategy="steps" if evaluator else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=evaluator is not None,
        metric_for_best_model=f"eval_{NDCG}" if evaluator else None,
        logging_steps=every,
        report_to=list(recipe.report_to) or "none",
        disable_tqdm=True,
        **_precision(recipe),
    )
    callbacks: list[Any] = [Tells(on_progress), StopsAtCtrlC()]
    if recipe.patience is not None:
        if evaluator is None:
            raise InputError("patience needs examples to evaluate with; give --evaluate or --hold-out")
        callbacks.append(EarlyStoppingCallback(recipe.patience))
    trainer = _Trainer(
        loaded,
        args=arguments,
        train_dataset=dataset,
        loss=loss_for(recipe.loss, loaded.encoder),
        evaluator=evaluator,
        data_collator=groups,
        callbacks=callbacks,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _precision(recipe: Recipe) -> dict[str, Any]:
    """Return the Trainer's arguments for a precision. Raises TrainingError for one that this host does not have."""
    has_gpu = torch.cuda.is_available()
    precision = recipe.precision
    if precision == "auto":
        precision = "fp32" if not has_gpu else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and not has_gpu:
        raise TrainingError("--precision fp16 needs a GPU; a CPU trains in fp32, or in bf16 if it has instructions")
    is_cpu_only = not has_gpu and not torch.backends.mps.is_available()
    return {"bf16": precision == "bf16", "fp16": precision == "fp16", "use_cpu": is_cpu_only}


def _before(folder: Path, loaded: Loaded, evaluator: Evaluator | None) -> dict[str, float] | None:
    """Return the quality of the checkpoint that a run began with, which a run that continues has written down."""
    if evaluator is None:
        return None
    path = folder / _BEFORE
    if not path.exists():
        path.write_text(json.dumps(evaluator(loaded.encoder)), encoding="utf-8")
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _after(trainer: _Trainer) -> dict[str, float] | None:
    """Return the quality of the weights that are kept, which was measured when they were written."""
    best = trainer.state.best_global_step
    found = next((log for log in trainer.state.log_history if log["step"] == best and f"eval_{NDCG}" in log), None)
    return None if found is None else {name: found[f"eval_{name}"] for name in (NDCG, MRR)}


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that was written whole: the state is the last of its files. None if there is none."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return str(path)
    return None


def _train_model(trainer: _Trainer, recipe: Recipe, checkpoint: str | None) -> None:
    """Train. Raises MemoryShort with a batch that fits, KeyboardInterrupt after Ctrl-C."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        message = _advice(trainer, recipe)
        raise MemoryShort(message) from error
    if any(isinstance(one, StopsAtCtrlC) and one.was_pressed for one in trainer.callback_handler.callbacks):
        raise KeyboardInterrupt


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _advice(trainer: _Trainer, recipe: Recipe) -> str:
    """Try smaller batches of the longest rows, and say which one fits."""
    said = f"a batch of {recipe.batch_size} queries with {recipe.group_size} passages does not fit into memory."
    size = recipe.batch_size // 2
    while size and not _fits(trainer, recipe, size):
        size //= 2
    if not size:
        return f"{said} One query does not fit either: lower --group-size or --max-length, or use --checkpointing"
    accumulate = ceil(recipe.batch_size * recipe.accumulate / size)
    return f"{said} --batch-size {size} --accumulate {accumulate} fits, and its steps have as many queries"


def _fits(trainer: _Trainer, recipe: Recipe, size: int) -> bool:
    texts = " ".join(["word"] * recipe.max_length)
    batch = {
        "query": [texts] * size,
        "passages": [[texts] * recipe.group_size] * size,
        "label": [torch.tensor([1.0] + [0.0] * (recipe.group_size - 1))] * size,
    }
    trainer.model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        loss: Any = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        return False
    return True


def _write(
    folder: Path, loaded: Loaded, task: Task, recipe: Recipe, outcome: Outcome, history: list[dict[str, Any]]
) -> None:
    """Write the result, give it its name, and remove what the run has left."""
    result = folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    loaded.save(result)
    (result / "README.md").write_text(card(task, recipe, outcome), encoding="utf-8")
    (result / _STATE).write_text(json.dumps({"log_history": history}, indent=2) + "\n", encoding="utf-8")
    result.rename(task.out)
    shutil.rmtree(folder)
