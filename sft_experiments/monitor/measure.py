"""From what a trainer logs to an event: our names, and what the trainer does not know itself."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sft_experiments.monitor.events import Event
from sft_experiments.monitor.facts import RunFacts
from sft_experiments.monitor.memory import measure_memory
from sft_experiments.monitor.names import SUPERVISED_TOKENS, TOKENS, measured
from sft_experiments.monitor.speed import Speed

MOVED = 0.5  # once this share of the sampled weights has changed, they are no longer looked at


class Measure:
    """Builds events. Adds speed, memory, the train-eval gap and the share of weights that moved."""

    def __init__(self, facts: RunFacts) -> None:
        self.speed = Speed(facts)
        self._started = time.monotonic()
        self._tokens = 0.0
        self._seconds_before = 0.0  # of training before a resume
        self._train_loss: float | None = None
        self._last_eval_step = -1
        self._weights: Any = None

    def replay(self, events: Iterable[Event]) -> None:
        """Take up where a resumed run was."""
        for event in events:
            self._tokens, self._seconds_before = event["tokens"], event["time"]
            self._train_loss = event.get("train/loss", self._train_loss)
            if "train/tokens_per_second" in event:
                self.speed.replay(event["tokens"], event["train/tokens_per_second"])
            if "eval/loss" in event:
                self._last_eval_step = int(event["step"])

    def train_begin(self, model: Any, tokens: float) -> None:
        """``model``: a ``torch.nn.Module``. ``tokens``: trained so far, when a run goes on."""
        from sft_experiments.monitor.weights import WeightSample

        self._weights = WeightSample(model)
        self._tokens = tokens
        self._started = time.monotonic()
        self.speed.start(self._started, tokens)

    def event(self, step: int, epoch: float, logs: Mapping[str, Any]) -> Event | None:
        """None for logs that are no event: the Trainer's summary, or an evaluation that is in the stream already."""
        measurements = measured(logs)
        if not measurements or ("eval/loss" in measurements and step <= self._last_eval_step):
            return None
        self._tokens = logs.get(TOKENS, self._tokens)
        if "train/loss" in measurements:
            measurements |= self._of_training(measurements["train/loss"], logs.get(SUPERVISED_TOKENS, 0))
        if "eval/loss" in measurements:
            measurements |= self._of_evaluation(step, measurements["eval/loss"])
        return {**self._axes(step, epoch), **measurements}

    def _axes(self, step: int, epoch: float) -> Event:
        seconds = self._seconds_before + time.monotonic() - self._started
        return {"step": step, "tokens": self._tokens, "epoch": epoch, "time": seconds}

    def _of_training(self, loss: float, supervised: float) -> Event:
        self._train_loss = loss
        return self.speed.measure(self._tokens, supervised) | measure_memory() | self._of_weights()

    def _of_evaluation(self, step: int, loss: float) -> Event:
        self._last_eval_step = step
        return {} if self._train_loss is None else {"eval/train_gap": loss - self._train_loss}

    def _of_weights(self) -> Event:
        if self._weights is None:
            return {}
        changed = self._weights.changed_fraction()
        if changed >= MOVED:
            self._weights = None
        return {"train/changed_weights": changed}
