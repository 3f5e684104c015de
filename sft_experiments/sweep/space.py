"""What a search may choose from: intervals and listed values, from the sweep group or from the command line.

In YAML: ``key: [a, b]`` or ``key: {low: 1e-5, high: 1e-3, log: true}``. At the shell, as Hydra writes it:
``key=a,b``, ``key=interval(0,1)``, ``'key=tag(log,interval(1e-5,1e-3))'``, ``'key=int(interval(1,8))'``.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

from omegaconf import DictConfig

from sft_experiments.config.hydra import Composer, interval_of, override_values
from sft_experiments.config.load import as_mapping
from sft_experiments.config.validate import outside
from sft_experiments.errors import ConfigError
from sft_experiments.sweep.cells import Cell, seed_axis
from sft_experiments.values import format_value

DRAWS_PER_TRIAL = 100  # of a space with few points many draws repeat earlier ones; then we stop


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``."""

    low: float
    high: float
    log: bool = False  # every factor alike, as learning rates want it
    whole: bool = False

    def draw(self, source: random.Random) -> str:
        if self.whole and not self.log:
            return str(source.randint(int(self.low), int(self.high)))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = source.uniform(low, high)
        return self.text(math.exp(value) if self.log else value)

    def __str__(self) -> str:
        low, high = (format_value(json.loads(text)) for text in self.corners())
        return f"{low} to {high}{' (log)' if self.log else ''}"

    def text(self, value: float) -> str:
        """Three digits: finer differences are noise, and values stay readable. Never outside of the interval."""
        if self.whole:
            return str(round(value))
        rounded = float(f"{value:.3g}")
        return repr(rounded if self.low <= rounded <= self.high else value)

    def corners(self) -> list[str]:
        return [self.text(self.low), self.text(self.high)]


@dataclass(frozen=True)
class Listed:
    """Some values, as they are written in overrides."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.values)

    def draw(self, source: random.Random) -> str:
        return source.choice(self.values)

    def corners(self) -> list[str]:
        return list(self.values)


Dimension = Union[Interval, Listed]


@dataclass(frozen=True)
class Space:
    """Fixed overrides, and what is searched, by key. ``seeds`` are the replicas of each point."""

    fixed: list[str]
    dimensions: dict[str, Dimension]
    seeds: dict[str, list[str]]

    def cells(self, point: dict[str, str]) -> list[Cell]:
        """One cell per seed of a point."""
        chosen = [f"{key}={value}" for key, value in point.items()]
        axes = [*self.dimensions, *self.seeds]
        return [Cell([*self.fixed, *chosen, *seed], axes) for seed in itertools.product(*self.seeds.values())]

    def corners(self) -> list[Cell]:
        """A few cells in which each listed value and both ends of each interval occur, to look for mistakes."""
        columns = {key: dimension.corners() for key, dimension in self.dimensions.items()}
        longest = max(map(len, columns.values()))
        points = [{key: values[row % len(values)] for key, values in columns.items()} for row in range(longest)]
        return [cell for point in points for cell in self.cells(point)]


def search_space(composer: Composer) -> Space:
    """The space that the command line and the sweep group describe; a key typed replaces the group's.

    Raises ``ConfigError`` when there is nothing to search or a dimension makes no sense.
    """
    typed = {override.get_key_element(): override for override in composer.parse(composer.overrides)}
    dimensions = {key: _typed_dimension(item) for key, item in typed.items() if item.is_sweep_override()}
    fixed = [str(override.input_line) for key, override in typed.items() if key not in dimensions]
    composed = composer.cell(fixed)
    for key, value in as_mapping(composed.sweep.axes).items():
        if key not in typed:
            dimensions[key] = _listed_dimension(key, value)
    if not dimensions:
        raise ConfigError("nothing to search: give a key several values or an interval, e.g. key=interval(0,1)")
    seeds = seed_axis(composed, {key: override_values(item) for key, item in typed.items() if key not in dimensions})
    return Space([item for item in fixed if item.split("=", 1)[0] not in seeds], dimensions, seeds)


def _typed_dimension(override: Any) -> Dimension:
    """An interval, or the values that are listed; ``override`` as Hydra's grammar reads it."""
    if (interval := interval_of(override)) is not None:
        return _interval(override.get_key_element(), *interval)
    return Listed(tuple(item.split("=", 1)[1] for item in override_values(override)))


def _listed_dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, list) and value:
        return Listed(tuple(map(str, value)))
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        return _interval(key, value["low"], value["high"], bool(value.get("log", False)))
    raise ConfigError(f"sweep.axes: {key} must have a list of values or {{low, high, log}}, not {value!r}")


def _interval(key: str, low: Any, high: Any, log: bool) -> Interval:
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high):
        raise ConfigError(f"{key}: the interval from {low} to {high} is empty")
    if log and low <= 0:
        raise ConfigError(f"{key}: a logarithmic interval must start above 0, not at {low}")
    return Interval(float(low), float(high), log, whole=isinstance(low, int) and isinstance(high, int))


def random_cells(composer: Composer) -> Iterator[Cell]:
    """``sweep.num_trials`` different points, drawn with ``sweep.search_seed``. A larger number keeps the first ones."""
    for mistake in outside(
        "sweep.num_trials", composer.master.sweep.num_trials
    ):  # no cell will tell when there is none
        raise ConfigError(mistake)
    yield from drawn_cells(search_space(composer), composer.master)


def drawn_point(dimensions: Mapping[str, Dimension], seed: int, number: int) -> dict[str, str]:
    """One point at random, the same for the same seed and number."""
    source = random.Random(f"{seed} {number}")
    return {key: dimension.draw(source) for key, dimension in dimensions.items()}


def drawn_cells(space: Space, master: DictConfig) -> Iterator[Cell]:
    """``sweep.num_trials`` different points of a space, each with its seeds."""
    wanted, seen = int(master.sweep.num_trials), set()
    for number in range(wanted * DRAWS_PER_TRIAL):
        point = drawn_point(space.dimensions, int(master.sweep.search_seed), number)
        if tuple(point.values()) not in seen:
            seen.add(tuple(point.values()))
            yield from space.cells(point)
        if len(seen) == wanted:
            return
