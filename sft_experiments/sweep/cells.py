"""The cells of a sweep: which overrides each one stands for, and what they compose to."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from sft_experiments.config.hydra import Composer, override_values
from sft_experiments.config.load import as_mapping
from sft_experiments.errors import ConfigError

SEED_AXIS = "train.seed"


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    overrides: list[str]  # the whole command line of the cell
    axes: list[str]  # which of its keys are axes

    def label(self) -> str:
        """Its values of the axes, as typed."""
        return " ".join(item for item in self.overrides if item.split("=", 1)[0] in self.axes)


def expand(composer: Composer) -> Iterator[Cell]:
    """Every cell: values typed on the command line first, then the sweep group's axes, then seeds.

    A key typed on the command line replaces the axis of the same name, so that the command line always wins.
    """
    parsed = composer.parse(composer.overrides)
    typed = {override.get_key_element(): override_values(override) for override in parsed}
    typed_axes = [key for key, values in typed.items() if len(values) > 1]
    for combination in itertools.product(*typed.values()):
        own_axes = group_axes(composer, list(combination), set(typed))
        for inner in itertools.product(*own_axes.values()):
            yield Cell([*combination, *inner], [*typed_axes, *own_axes])


def group_axes(composer: Composer, fixed: list[str], typed: set[str]) -> dict[str, list[str]]:
    """The axes of the sweep group for one combination of typed values, as overrides.

    Composed anew for each combination, because the default grid follows the model's size.
    """
    composed = composer.cell(fixed)
    axes = {}
    for key, values in as_mapping(composed.sweep.axes).items():
        if key not in typed:
            if not isinstance(values, list) or not values:
                raise ConfigError(f"sweep.axes: {key} must have a list of values, not {values!r}")
            axes[key] = [f"{key}={value}" for value in values]
    return axes | seed_axis(composed, typed)


def seed_axis(composed: DictConfig, typed: set[str]) -> dict[str, list[str]]:
    """The replicas that ``sweep.num_seeds`` asks for; none when the seed is typed or one is enough."""
    if composed.sweep.num_seeds <= 1 or SEED_AXIS in typed:
        return {}
    first = composed.train.seed
    return {SEED_AXIS: [f"{SEED_AXIS}={first + replica}" for replica in range(composed.sweep.num_seeds)]}


def axis_keys(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell.axes))
