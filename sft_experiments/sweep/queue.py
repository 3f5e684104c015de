"""What the pool trains next: it asks whenever a place is free."""

from collections import deque
from collections.abc import Callable
from typing import Optional

from sft_experiments.launch.trial import Trial
from sft_experiments.runs.record import Record


class Queue:
    """Trials in their order, each to its end. What is handed out has been written into its folder."""

    def __init__(self, trials: list[Trial]) -> None:
        self.waiting = deque(trials)
        for trial in trials:
            trial.write()

    def next(self) -> Optional[Trial]:
        """The trial to start now; None: nothing, unless a trial that runs makes a difference."""
        return self.waiting.popleft() if self.waiting else None

    def again(self, trial: Trial) -> None:
        """Once more, before all others."""
        trial.write()
        self.waiting.appendleft(trial)

    def ended(self, trial: Trial, record: Record) -> None:
        """A trial that was handed out has ended, for whatever reason, and is not tried again."""

    def change(self, revised: Callable[[Trial], Trial]) -> None:
        """Let the trials that wait start with another plan."""
        for index, trial in enumerate(self.waiting):
            if (other := revised(trial)) is not trial:
                other.write()
                self.waiting[index] = other

    def stop(self) -> None:
        """Nothing more is to start. Called from a signal handler too."""
        self.waiting.clear()

    def close(self) -> None:
        """No trial runs any more, and none is to start."""
