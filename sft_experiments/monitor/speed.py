"""Speed of training between two log events, without the time spent on evaluating, saving and logging."""

from sft_experiments.monitor.events import Event
from sft_experiments.monitor.facts import RunFacts


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
            "train/tokens_per_second": new / seconds,
            "train/supervised_tokens_per_second": supervised / seconds,
        }
        if self._facts.flops_per_token and self._facts.peak_flops:
            speed["train/mfu"] = new / seconds * self._facts.flops_per_token / self._facts.peak_flops
        return speed

    def of_the_run(self) -> Event:
        """``train/tokens_per_second`` over all measurements; empty when there are none."""
        return {"train/tokens_per_second": self._whole_tokens / self._whole_seconds} if self._whole_seconds else {}

    def _count(self, tokens: float, seconds: float) -> None:
        self._whole_tokens += tokens
        self._whole_seconds += seconds
