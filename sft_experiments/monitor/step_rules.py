"""Warning signs in the optimizer's steps: weights, learning rate, gradients, speed, memory."""

from collections import deque
from statistics import median

from sft_experiments.monitor.events import Event
from sft_experiments.monitor.facts import RunFacts
from sft_experiments.monitor.rule import finite_value, first_value, is_full, rises
from sft_experiments.report.number_format import format_rate


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
