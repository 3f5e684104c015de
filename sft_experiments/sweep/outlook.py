"""What a run or sweep would do and cost: its trials, each with its forecast. No torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from sft_experiments.launch.trial import Trial
from sft_experiments.models.shape import Shape, shape_of
from sft_experiments.plan.data_facts import DataFacts, data_facts
from sft_experiments.plan.derive import on_a_gpu
from sft_experiments.plan.duration import measured_runs
from sft_experiments.plan.forecast import Forecast, forecast
from sft_experiments.schema import Config
from sft_experiments.sweep.ledger import Sweep
from sft_experiments.sweep.planning import SearchAhead


@dataclass(frozen=True)
class Outlook:
    """A run or sweep as planned: its trials with their forecasts, in launch order."""

    sweep: Optional[Sweep]
    trials: list[Trial]
    forecasts: list[Forecast]
    facts: list[Optional[DataFacts]]
    price_per_hour: Optional[float]
    search: Optional[SearchAhead] = None  # a Bayesian one: the trials are those of the points proposed so far
    examples: Optional["Outlook"] = None  # of a search: points drawn at random, like those to come

    @property
    def concurrent_trials(self) -> int:
        return self.sweep.concurrent_trials if self.sweep else 1

    def states(self) -> list[str]:
        """For each trial, the status that an earlier launch left; ``new`` for one that was never started."""
        earlier = [trial.recorded() for trial in self.trials]
        return [record.status.value if record else "new" for record in earlier]

    def device_seconds(self) -> Optional[float]:
        """Of all devices together; what the price is for. One number of devices per trial: the largest of any."""
        seconds, trials = self.seconds_to_run(), [*self.trials, *(self.examples.trials if self.examples else [])]
        return None if seconds is None else seconds * max(trial.config.compute.num_devices for trial in trials)

    def price(self) -> Optional[float]:
        seconds = self.device_seconds()
        return None if seconds is None or self.price_per_hour is None else seconds / 3600 * self.price_per_hour

    def seconds_to_run(self) -> Optional[float]:
        """Of the trials that the command would train, one after another; None when one of them is unknown."""
        pending = [
            item.duration.seconds if item.duration else None
            for item, trial in zip(self.forecasts, self.trials, strict=True)
            if trial.needs_running(retry_failed=self.sweep is None or trial.config.sweep.retry_failed)
        ]
        pending += [self.seconds_of_examples()[0]] * self.left
        known = [seconds for seconds in pending if seconds is not None]
        return sum(known) if len(known) == len(pending) else None

    @property
    def left(self) -> int:
        """How many points a search has still to propose."""
        return max(0, self.search.num_trials - len(self.trials)) if self.search else 0

    def seconds_of_examples(self) -> tuple[Optional[float], Optional[float]]:
        """Time of one example on average and at most; None when it is unknown."""
        durations = [item.duration for item in self.examples.forecasts] if self.examples else []
        seconds = [duration.seconds for duration in durations if duration]
        return (sum(seconds) / len(seconds), max(seconds)) if seconds else (None, None)


def outlook_of(
    sweep: Optional[Sweep], trials: list[Trial], device_bytes: Optional[float], price: Optional[float]
) -> Outlook:
    """The forecast of each trial."""
    if device_bytes is not None:
        trials = [replace(trial, plan=on_a_gpu(trial.config, trial.plan, device_bytes)) for trial in trials]
    runs = measured_runs(Path(trials[0].config.output_dir)) if trials else []
    known_facts = Remembered(data_facts, lambda config: (repr(config.dataset), repr(config.model)))
    known_shapes = Remembered(lambda config: shape_of(config.model), lambda config: repr(config.model))
    facts: list[Optional[DataFacts]] = [known_facts(trial.config) for trial in trials]
    shapes: list[Optional[Shape]] = [known_shapes(trial.config) for trial in trials]
    forecasts = [
        forecast(trial.config, trial.plan, fact, shape, runs, device_bytes)
        for trial, fact, shape in zip(trials, facts, shapes, strict=True)
    ]
    return Outlook(sweep, trials, forecasts, facts, price)


class Remembered:
    """A function of a config, called once for all cells that agree in what it reads."""

    def __init__(self, function: Any, key: Any) -> None:
        self._function, self._key = function, key
        self._known: dict[Any, Any] = {}

    def __call__(self, config: Config) -> Any:
        key = self._key(config)
        if key not in self._known:
            self._known[key] = self._function(config)
        return self._known[key]
