"""`sft plan` and `sft recommend`: what a run or sweep will do and cost, before it does anything. No torch."""

import json
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from sft_experiments.errors import ConfigError
from sft_experiments.plan.duration import measured_runs
from sft_experiments.plan.facts import DataFacts, data_facts
from sft_experiments.plan.fit import on_a_gpu, parse_size
from sft_experiments.plan.forecast import Forecast, forecast
from sft_experiments.plan.shape import Shape, shape_of
from sft_experiments.run.trial import Trial, plan_trial
from sft_experiments.schema import Config
from sft_experiments.sweep.ledger import Sweep

if TYPE_CHECKING:
    from sft_experiments.sweep.bayes import SearchAhead


@dataclass(frozen=True)
class Outlook:
    """A run or sweep as planned: its trials with their forecasts, in launch order."""

    sweep: Optional[Sweep]
    trials: list[Trial]
    forecasts: list[Forecast]
    facts: list[Optional[DataFacts]]
    price_per_hour: Optional[float]
    search: Optional["SearchAhead"] = None  # a Bayesian one: the trials are those of the points proposed so far
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


def plan(arguments: list[str], sweep_by_default: bool = False) -> int:
    """`sft plan [overrides]`: one run, or the cells of a sweep."""
    options, overrides = _options().parse_known_args(arguments)
    found = outlook(overrides, options, sweep_by_default)
    if options.json:
        print(json.dumps(as_dict(found), indent=2, default=str))
    else:
        from sft_experiments.plan.display import show_outlook

        show_outlook(found)
    return 0


def _options() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sft plan",
        usage="sft plan [--from RUN_DIR] [--device-memory 80GiB] [--price 2.5] [--json] [key=value ...] [key=a,b ...]"
        " [sweep=...]",
        description="What a run or sweep would do and cost. Nothing is trained or written.",
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="run_folder", metavar="RUN_DIR", help="a recorded run again, with changes")
    parser.add_argument("--device-memory", help="memory of one device to judge against, e.g. 80GiB")
    parser.add_argument("--price", type=_price, help="price of one device per hour, in any currency")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise ArgumentTypeError(f"{text}: must be a number of at least 0")
    return price


def outlook(overrides: list[str], options: Namespace, sweep_by_default: bool = False) -> Outlook:
    """Compose, plan and forecast. Raises ``ConfigError`` and ``DataError`` as a launch would."""
    from sft_experiments.composition import composed
    from sft_experiments.model_use.recorded import recorded_run

    device_bytes = parse_size(options.device_memory) if options.device_memory else None
    if options.run_folder is not None:
        if sweep_by_default:
            raise ConfigError("--from is one run: sft plan --from RUN_DIR [key=value ...]")
        again = plan_trial(*recorded_run(Path(options.run_folder), overrides))
        return outlook_of(None, [again], device_bytes, options.price)
    with composed(overrides, sweep_by_default) as composition:
        if composition.is_search:
            search = composition.search()
            examples = outlook_of(search.sweep, search.examples, device_bytes, options.price)
            found = outlook_of(search.sweep, search.proposed, device_bytes, options.price)
            return replace(found, search=search, examples=examples)
        if composition.is_sweep:
            sweep, trials = composition.sweep()
        else:
            sweep, trials = None, [composition.trial()]
    return outlook_of(sweep, trials, device_bytes, options.price)


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


def as_dict(found: Outlook) -> dict[str, Any]:
    """The content of ``sft plan --json``."""
    seconds = found.seconds_to_run()
    cells = [
        {
            "trial_id": trial.id,
            "folder": str(trial.folder.path),
            "axes": trial.record.axes,
            "state": state,
            **trial.plan.as_dict(),
            "values": trial.record.plan["values"],
            "data": None if fact is None else vars(fact),
            **item.as_dict(),
        }
        for trial, item, fact, state in zip(found.trials, found.forecasts, found.facts, found.states(), strict=True)
    ]
    return {
        "sweep": str(found.sweep.folder) if found.sweep else None,
        "search": search_as_dict(found) if found.search else None,
        "concurrent_trials": found.concurrent_trials,
        "device_seconds": found.device_seconds(),
        "wall_seconds": None if seconds is None else seconds / found.concurrent_trials,
        "price": found.price(),
        "cells": cells,
    }


def search_as_dict(found: Outlook) -> dict[str, Any]:
    """What is known of a Bayesian search whose cells are not."""
    assert found.search is not None
    average, most = found.seconds_of_examples()
    return {
        "space": {key: str(dimension) for key, dimension in found.search.space.dimensions.items()},
        "num_trials": found.search.num_trials,
        "left": found.left,
        "trial_seconds": {"average": average, "most": most},
    }
