"""Warning signs in the losses."""

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

from sft_experiments.monitor.events import Event, measurements
from sft_experiments.monitor.facts import RunFacts
from sft_experiments.monitor.rule import finite_value, is_full, rises

CONSISTENT = 1.4826  # times the median absolute deviation of normal noise gives its standard deviation


class NotFinite:
    """NaN or infinity in any loss or gradient norm. (The trainer also checks before each optimizer step.)"""

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
