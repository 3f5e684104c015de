"""The Trainer's side of monitoring: passes on what happens, and ends training when a rule asks for it."""

from typing import Any

from transformers import (  # noqa: TID253  # only the worker imports this module
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sft_experiments.monitor.session import Monitor


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
