"""Callbacks that decide when to evaluate, save and stop."""

import signal
from types import FrameType
from typing import Any, Optional

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft_experiments.training.ranks import largest, num_ranks


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
