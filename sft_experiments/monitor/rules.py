"""The health rules: what each looks at in the events of a run, and when it fires.

Each rule is a small state machine over the event stream: no clock, no randomness, no device. It sees every event in
order and answers with a sentence when its sign is there, else with None. What happens then is decided in health.py;
docs/health.md explains each rule, and thresholds are in conf/monitor.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Protocol

from sft_experiments.runs.metrics import Event, measurements
from sft_experiments.values import format_rate


class Rule(Protocol):
    def observe(self, event: Event) -> str | None: ...


def finite_value(event: Event, name: str) -> float | None:
    value = event.get(name)
    return value if value is not None and math.isfinite(value) else None


def first_value(event: Event, names: Iterable[str]) -> float | None:
    return next((event[name] for name in names if name in event), None)


def is_full(values: deque[float]) -> bool:
    return len(values) == values.maxlen


def rises(values: Iterable[float], least: float) -> bool:
    """Whether each value is more than ``least`` above the one before it."""
    return all(after - before > least for before, after in pairwise(values))


@dataclass(frozen=True)
class RunFacts:
    """Everything but ``total_steps`` may be unknown (None): rules and metrics that need it stay silent."""

    total_steps: int
    warmup_steps: int = 0
    planned_learning_rates: Sequence[float] | None = None  # of optimizer step 1, 2, ...
    flops_per_token: float | None = None  # forward and backward, of one trained token
    peak_flops: float | None = None  # per second, of all devices together, in the training precision
    memory_gib: float | None = None  # of the device, else of the host


CONSISTENT = 1.4826  # times the median absolute deviation of normal noise gives its standard deviation


class NotFinite:
    """NaN or infinity in any loss or gradient norm; the trainer also checks before each optimizer step."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        pass

    def observe(self, event: Event) -> str | None:
        bad = [name for name, value in measurements(event).items() if not math.isfinite(value)]
        return f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite" if bad else None


class ZeroLoss:
    """A training loss of exactly 0 for ``window`` events: no token is supervised."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.zeros = 0
        self.window = window

    def observe(self, event: Event) -> str | None:
        if "train/loss" not in event:
            return None
        self.zeros = self.zeros + 1 if event["train/loss"] == 0 else 0
        if self.zeros < self.window:
            return None
        return f"train/loss is exactly 0 in {self.zeros} events in a row: are any tokens supervised?"


class LossSpike:
    """A training loss more than ``threshold`` robust deviations above the median of the last 5 events.

    The deviation is that of the steps from event to event in the last ``window`` events, which a falling loss does
    not widen. It is taken as at least 0.02 nats and 2% of the loss, so that a loss that hardly varies may twitch.
    """

    LEAST_NATS = 0.02
    LEAST_SHARE = 0.02
    CENTER = 5

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.recent: deque[float] = deque(maxlen=window)

    def observe(self, event: Event) -> str | None:
        loss = finite_value(event, "train/loss")
        if loss is None:
            return None
        message = self._judge(loss) if len(self.recent) >= (self.recent.maxlen or 0) // 2 else None
        self.recent.append(loss)
        return message

    def _judge(self, loss: float) -> str | None:
        center = median(list(self.recent)[-self.CENTER :])
        deviation = max(_noise(self.recent), self.LEAST_NATS, self.LEAST_SHARE * center)
        if loss - center <= self.threshold * deviation:
            return None
        return f"train/loss jumped to {loss:.4g} from about {center:.4g}"


def _noise(values: Iterable[float]) -> float:
    """Standard deviation around the trend, unmoved by outliers: from the median absolute deviation of differences."""
    steps = [after - before for before, after in pairwise(values)]
    middle = median(steps)
    return CONSISTENT * median(abs(step - middle) for step in steps) / math.sqrt(2)


class LossNotDecreasing:
    """``window`` events after warmup, the median loss is not ``threshold`` (a share) below that of the first events.

    The first and last quarter of a window are compared. Silent for good once the loss has fallen.
    """

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.window = window
        self.warmup_steps = facts.warmup_steps
        self.quarter = max(3, window // 4)
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=self.quarter)
        self.after_warmup = 0
        self.has_fallen = False

    def observe(self, event: Event) -> str | None:
        loss = finite_value(event, "train/loss")
        if loss is None or self.has_fallen:
            return None
        self.after_warmup += event["step"] > self.warmup_steps
        if len(self.first) < self.quarter:
            self.first.append(loss)
            return None
        self.last.append(loss)
        if len(self.last) < self.quarter:
            return None
        before, now = median(self.first), median(self.last)
        self.has_fallen = now < before * (1 - self.threshold)
        if self.has_fallen or self.after_warmup < self.window:
            return None
        return f"train/loss has not decreased since warmup: {before:.4g} at first, {now:.4g} now"


class TrainEvalGap:
    """Eval loss minus train loss is above ``threshold`` and has risen in each of ``window`` evaluations.

    The train loss is the mean of the events since the evaluation before, which is steadier than ``eval/train_gap``.
    A rise counts when it is more than a tenth of the threshold. While the eval loss has a new low among the last two
    evaluations, the model still learns what holds for new data, however far ahead the train loss is.
    """

    PATIENCE = 2  # evaluations without a new low

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.gaps: deque[float] = deque(maxlen=window + 1)
        self.eval_losses: deque[float] = deque(maxlen=window + 1)
        self.train_losses: list[float] = []

    def observe(self, event: Event) -> str | None:
        if (loss := finite_value(event, "train/loss")) is not None:
            self.train_losses.append(loss)
        eval_loss = finite_value(event, "eval/loss")
        if eval_loss is None or not self.train_losses:
            return None
        self.gaps.append(eval_loss - sum(self.train_losses) / len(self.train_losses))
        self.eval_losses.append(eval_loss)
        self.train_losses.clear()
        if not is_full(self.gaps) or self.gaps[-1] <= self.threshold or not rises(self.gaps, self.threshold / 10):
            return None
        if self._still_falls():
            return None
        return (
            f"eval loss no longer falls and is {self.gaps[-1]:.3f} above the mean train loss since the evaluation"
            " before, more each time: overfitting"
        )

    def _still_falls(self) -> bool:
        losses = list(self.eval_losses)
        return min(losses) < min(losses[: max(len(losses) - self.PATIENCE, 1)])


class EvalLossRising:
    """Eval loss rose in ``window`` evaluations in a row, each time by more than ``threshold`` (a share)."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.losses: deque[float] = deque(maxlen=window + 1)

    def observe(self, event: Event) -> str | None:
        loss = finite_value(event, "eval/loss")
        if loss is None:
            return None
        self.losses.append(loss)
        if not is_full(self.losses) or not rises(self.losses, self.threshold * self.losses[0]):
            return None
        return f"eval/loss rose {len(self.losses) - 1} evaluations in a row, from {self.losses[0]:.4g} to {loss:.4g}"


class UnchangedWeights:
    """After ``window`` steps of training, less than ``threshold`` of a sample of the trainable weights has moved."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.window = window

    def observe(self, event: Event) -> str | None:
        moved = event.get("train/changed_weights")
        if moved is None or event["step"] < self.window or moved >= self.threshold:
            return None
        return f"only {moved:.1%} of the trainable weights have changed: learning rate or precision too low, or frozen?"


class LearningRate:
    """The learning rate of a step differs from the planned schedule by more than ``threshold`` (a share)."""

    SMALLEST = 1e-12  # both below: equal

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.planned = facts.planned_learning_rates

    def observe(self, event: Event) -> str | None:
        rate = event.get("train/learning_rate")
        index = int(event["step"]) - 1
        if rate is None or self.planned is None or not 0 <= index < len(self.planned):
            return None
        planned = self.planned[index]
        if abs(rate - planned) <= max(self.threshold * planned, self.SMALLEST):
            return None
        return f"learning rate is {format_rate(rate)} where the schedule plans {format_rate(planned)}"


class GradNormHigh:
    """The gradient norm (before clipping) is above ``threshold`` in ``window`` events in a row."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.recent: deque[float] = deque(maxlen=window)

    def observe(self, event: Event) -> str | None:
        norm = finite_value(event, "train/grad_norm")
        if norm is None:
            return None
        self.recent.append(norm)
        if not is_full(self.recent) or min(self.recent) <= self.threshold:
            return None
        return f"gradient norm is {norm:.3g}, above {self.threshold:g} in {len(self.recent)} events: exploding"


class GradNormLow:
    """The gradient norm is below ``threshold`` in ``window`` events in a row."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.recent: deque[float] = deque(maxlen=window)

    def observe(self, event: Event) -> str | None:
        norm = finite_value(event, "train/grad_norm")
        if norm is None:
            return None
        self.recent.append(norm)
        if not is_full(self.recent) or max(self.recent) >= self.threshold:
            return None
        return f"gradient norm is {norm:.3g}, below {self.threshold:g} in {len(self.recent)} events: vanishing"


class ThroughputDrop:
    """Each of the last ``window`` events is slower than ``threshold`` times the median of up to 200 before them.

    Neighbours on a shared machine come and go and halve the speed; that is no fault of the run.
    """

    HISTORY = 200

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.before: deque[float] = deque(maxlen=self.HISTORY)
        self.recent: deque[float] = deque(maxlen=window)

    def observe(self, event: Event) -> str | None:
        speed = finite_value(event, "train/tokens_per_second")
        if speed is None:
            return None
        if is_full(self.recent):
            self.before.append(self.recent[0])
        self.recent.append(speed)
        if len(self.before) < len(self.recent) or max(self.recent) >= self.threshold * median(self.before):
            return None
        return f"throughput fell to {median(self.recent):.0f} tokens/s from {median(self.before):.0f}"


class MemoryLimit:
    """More than ``threshold`` (a share) of the device's memory is reserved; without a device, of the host's."""

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.capacity = facts.memory_gib

    def observe(self, event: Event) -> str | None:
        used = first_value(event, ("memory/device_reserved_gib", "memory/host_rss_gib"))
        if used is None or self.capacity is None or used <= self.threshold * self.capacity:
            return None
        return f"{used:.1f} of {self.capacity:.1f} GiB memory are in use"


class MemoryGrowth:
    """The least memory in use rose by more than ``threshold`` (a share) over each of the last 4 windows: a leak.

    The minimum of a window is what stays in use whatever batch came by.
    """

    WINDOWS = 5  # the first is what the others are compared with

    def __init__(self, threshold: float, window: int, facts: RunFacts) -> None:
        self.threshold = threshold
        self.window = window
        self.current: list[float] = []
        self.floors: deque[float] = deque(maxlen=self.WINDOWS)

    def observe(self, event: Event) -> str | None:
        used = first_value(event, ("memory/device_allocated_gib", "memory/host_rss_gib"))
        if used is None:
            return None
        self.current.append(used)
        if len(self.current) < self.window:
            return None
        self.floors.append(min(self.current))
        self.current.clear()
        if not is_full(self.floors) or not rises(self.floors, self.threshold * self.floors[0]):
            return None
        return f"memory in use keeps growing: {self.floors[0]:.2f} to {self.floors[-1]:.2f} GiB"
