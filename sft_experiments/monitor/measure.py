"""From what a trainer logs to an event: our names, and what the trainer does not know itself."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sft_experiments.monitor.rules import RunFacts
from sft_experiments.runs.metrics import EVAL_LOSS, TOKENS_PER_SECOND, TRAIN_LOSS, Event
from sft_experiments.values import GIB

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
            self._train_loss = event.get(TRAIN_LOSS, self._train_loss)
            if TOKENS_PER_SECOND in event:
                self.speed.replay(event["tokens"], event[TOKENS_PER_SECOND])
            if EVAL_LOSS in event:
                self._last_eval_step = int(event["step"])

    def train_begin(self, model: Any, tokens: float) -> None:
        """``model``: a ``torch.nn.Module``. ``tokens``: trained so far, when a run goes on."""

        self._weights = WeightSample(model)
        self._tokens = tokens
        self._started = time.monotonic()
        self.speed.start(self._started, tokens)

    def event(self, step: int, epoch: float, logs: Mapping[str, Any]) -> Event | None:
        """None for logs that are no event: the Trainer's summary, or an evaluation that is in the stream already."""
        measurements = measured(logs)
        if not measurements or (EVAL_LOSS in measurements and step <= self._last_eval_step):
            return None
        self._tokens = logs.get(TOKENS, self._tokens)
        if TRAIN_LOSS in measurements:
            measurements |= self._of_training(measurements[TRAIN_LOSS], logs.get(SUPERVISED_TOKENS, 0))
        if EVAL_LOSS in measurements:
            measurements |= self._of_evaluation(step, measurements[EVAL_LOSS])
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


TOKENS = "num_tokens"
SUPERVISED_TOKENS = "num_supervised_tokens"
_RENAMED = {"eval_runtime": "eval/seconds"}
_NOT_METRICS = {
    *("epoch", "step", "total_flos", TOKENS, SUPERVISED_TOKENS, "num_input_tokens_seen"),  # axes and counters
    *("eval_num_tokens", "eval_num_supervised_tokens", "eval_samples_per_second", "eval_steps_per_second"),
}


_END_OF_TRAINING = "train_runtime"  # marks the Trainer's summary, which is not an event


def measured(logs: Mapping[str, Any]) -> Event:
    """The measurements in a Trainer log under our names; empty for logs that are not events."""
    if _END_OF_TRAINING in logs:
        return {}
    return {
        _our_name(name): float(value)
        for name, value in logs.items()
        if name not in _NOT_METRICS and isinstance(value, int | float)
    }


def _our_name(name: str) -> str:
    """``loss`` -> ``train/loss``, ``eval_loss`` -> ``eval/loss``; names that have a room already are kept."""
    if name in _RENAMED:
        return _RENAMED[name]
    if name.startswith("eval_"):
        return "eval/" + name.removeprefix("eval_")
    return name if name.startswith(("train/", "eval/", "memory/")) else f"train/{name}"


class Speed:
    """Told when steps end and when the trainer did something else; asked once per train event. Times in seconds."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._mark: float | None = None  # when the step now running began
        self._seconds = 0.0
        self._steps = 0
        self._tokens = 0.0
        self._whole_seconds, self._whole_tokens = 0.0, 0.0  # of the run

    def replay(self, tokens: float, tokens_per_second: float) -> None:
        """One measurement of a resumed run, made before it was stopped."""
        if tokens_per_second > 0:
            self._count(tokens - self._tokens, (tokens - self._tokens) / tokens_per_second)
        self._tokens = tokens

    def start(self, now: float, tokens: float) -> None:
        """Training begins, or goes on after ``tokens``."""
        self._mark, self._tokens = now, tokens

    def step_ended(self, now: float) -> None:
        if self._mark is not None:
            self._seconds += now - self._mark
            self._steps += 1
        self._mark = now

    def pause_ended(self, now: float) -> None:
        """The time since the last step went into something else than training."""
        self._mark = now

    def measure(self, tokens: float, supervised: float) -> Event:
        """Since the last call; ``tokens`` is the run's total, ``supervised`` the number since then."""
        seconds, steps, new = self._seconds, self._steps, tokens - self._tokens
        self._seconds, self._steps, self._tokens = 0.0, 0, tokens
        if not steps or seconds <= 0:
            return {}
        self._count(new, seconds)
        speed = {
            "train/step_seconds": seconds / steps,
            TOKENS_PER_SECOND: new / seconds,
            "train/supervised_tokens_per_second": supervised / seconds,
        }
        if self._facts.flops_per_token and self._facts.peak_flops:
            speed["train/mfu"] = new / seconds * self._facts.flops_per_token / self._facts.peak_flops
        return speed

    def of_the_run(self) -> Event:
        """``train/tokens_per_second`` over all measurements; empty when there are none."""
        return {TOKENS_PER_SECOND: self._whole_tokens / self._whole_seconds} if self._whole_seconds else {}

    def _count(self, tokens: float, seconds: float) -> None:
        self._whole_tokens += tokens
        self._whole_seconds += seconds


def measure_memory() -> Event:
    """``memory/*`` in GiB. The peak is that since the call before."""
    import psutil  # slow: 0.1 s; `sft plan` asks only for the capacity

    memory = {"memory/host_rss_gib": psutil.Process().memory_info().rss / GIB}
    return memory | _device_memory()


def _device_memory() -> Event:
    import torch  # slow: torch, seconds; `sft plan` reads this module too

    if not torch.cuda.is_available() or torch.cuda.memory_reserved() == 0:  # this run does not use it
        return {}
    memory = {
        "memory/device_allocated_gib": torch.cuda.memory_allocated() / GIB,
        "memory/device_reserved_gib": torch.cuda.memory_reserved() / GIB,
        "memory/device_peak_gib": torch.cuda.max_memory_allocated() / GIB,
    }
    torch.cuda.reset_peak_memory_stats()
    return memory


PER_TENSOR = 16


class WeightSample:
    """Remembers the sample when it is created. ``model`` is a ``torch.nn.Module``."""

    def __init__(self, model: Any) -> None:
        self._parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self._before = self._take()

    def changed_fraction(self) -> float:
        """Share of the sampled elements that differ from the start. One device sync."""
        return float((self._take() != self._before).float().mean())

    def _take(self) -> torch.Tensor:
        if not self._parameters:
            return torch.zeros(1)
        with torch.no_grad():
            parts = [_own(weight).detach().reshape(-1) for weight in self._parameters]
            return torch.cat([_spread(part).float().clone() for part in parts])


def _own(weight: Any) -> Any:
    """This rank's part of a sharded weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _spread(flat: torch.Tensor) -> torch.Tensor:
    """At most ``PER_TENSOR`` elements, evenly spaced."""
    return flat[:: max(1, flat.numel() // PER_TENSOR)][:PER_TENSOR]
