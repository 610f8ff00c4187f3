"""What people see of a run, and how they stop it: progress, a line at each evaluation, Ctrl-C. Callbacks of Trainer."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from transformers import TrainerCallback

from rankrt_finetune.training.quality import NDCG

# Called with the steps that are done and those that there are.
OnProgress: TypeAlias = Callable[[int, int], object]

_logger = logging.getLogger("rankrt")


class Tells(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy here
    """Reports each step, and says the loss and the quality at each evaluation."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._loss = float("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Report a step."""
        self._on_progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:
        """Say what was measured."""
        logs = logs or {}
        self._loss = logs.get("loss", self._loss)
        if "loss" in logs and args.eval_strategy == "no":
            _logger.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, self._loss)
        if f"eval_{NDCG}" in logs:
            _logger.info(
                "step %d of %d: loss %.4f, held-out %s %.4f",
                *(state.global_step, state.max_steps, self._loss, NDCG, logs[f"eval_{NDCG}"]),
            )


class StopsAtCtrlC(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy here
    """Ends the run after the step that Ctrl-C interrupts, with a checkpoint. A second Ctrl-C ends the process."""

    def __init__(self) -> None:
        self.was_pressed = False
        self._usual: Any = signal.SIG_DFL

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take Ctrl-C."""
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGINT, self._press)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Give it back."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._usual)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """Write a checkpoint and stop."""
        if self.was_pressed:
            control.should_save = control.should_training_stop = True
            _logger.warning(
                "stopped after step %d of %d; the same command with --resume continues",
                *(state.global_step, state.max_steps),
            )
        return control

    def _press(self, number: int, frame: Any) -> None:
        self.was_pressed = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
