"""The Trainer's side of monitoring: passes on what happens, and ends training when a rule asks for it."""

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Optional

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft_experiments.monitor.session import Monitor
from sft_experiments.training.checkpoints import checkpoint_folders, mark_complete
from sft_experiments.training.ranks import largest, num_ranks, wait_for_all


class MonitorCallback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Belongs first in the list of callbacks. Logs after training (a last evaluation, the test set) are left alone."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._training = True
        self._monitor.train_begin(model, state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._monitor.step_end(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._training or not logs:
            return
        self._monitor.log(state.global_step, state.epoch or 0.0, logs)
        self._monitor.pause_end()
        if self._monitor.stopped:
            control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._monitor.alive()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._monitor.pause_end()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._monitor.pause_end()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        self._monitor.train_end()


class EvaluateAndSave(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Evaluate and save after the planned optimizer steps: always together, so that the best one can be restored."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = frozenset(steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_evaluate = control.should_save = True


class StopAtRung(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Ends the training at a planned evaluation, whose checkpoint it can go on from."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """SIGTERM and SIGINT end the training after the current optimizer step, with a checkpoint."""

    def __init__(self) -> None:
        self.signal: Optional[int] = None

    def install(self) -> None:
        """Take over both signals. A second one ends the process at once.

        Not one of several ranks: a scheduler signals every process, and the ranks' launcher passes it on once more.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def agree(self) -> Optional[int]:
        """The signal, when any rank has got one: all stop after the same step."""
        self.signal = largest(self.signal or 0) or None
        return self.signal

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if self.signal is not None and num_ranks() == 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agree() is not None:
            control.should_save = control.should_training_stop = True


class StopTogether(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """When a rule ends the training on one rank it ends on all. Belongs after the callbacks that decide."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = bool(largest(int(control.should_training_stop)))

    on_evaluate = on_log


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """After each save: mark the checkpoint complete, then delete old ones but the newest few and the best.

    The Trainer's own ``save_total_limit`` deletes before our marker is written, which could leave no complete one.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        wait_for_all()  # each rank has written its random state
        if not state.is_world_process_zero:
            return
        root = Path(str(args.output_dir))
        mark_complete(root / f"checkpoint-{state.global_step}")
        best = f"checkpoint-{state.best_global_step}" if state.best_global_step else None
        for folder in checkpoint_folders(root)[: -self.newest]:
            if folder.name != best:
                shutil.rmtree(folder)
