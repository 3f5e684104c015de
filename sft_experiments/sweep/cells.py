"""The cells of a sweep: which overrides each one stands for, and what they compose to."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from sft_experiments.config.hydra import Composer, override_values
from sft_experiments.config.load import as_mapping
from sft_experiments.errors import ConfigError

SEED_AXIS = "train.seed"
NUM_SEEDS = "sweep.num_seeds"


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
        own_axes = group_axes(composer, list(combination), typed)
        outer = [item for item in combination if item.split("=", 1)[0] not in own_axes]
        for inner in itertools.product(*own_axes.values()):
            yield Cell([*outer, *inner], [*typed_axes, *own_axes])


def group_axes(composer: Composer, fixed: list[str], typed: Mapping[str, list[str]]) -> dict[str, list[str]]:
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


def seed_axis(composed: DictConfig, typed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The replicas that ``sweep.num_seeds`` asks for, counted from the seed that is set; none when one is enough.

    Several seeds that are typed take the place of a group's number. Raises ``ConfigError`` when that is typed as well.
    """
    seeds, number = typed.get(SEED_AXIS, ()), composed.sweep.num_seeds
    if len(seeds) > 1 and NUM_SEEDS in typed:
        raise ConfigError(f"{NUM_SEEDS}={number}: the seeds are typed too ({', '.join(seeds)}); give one of both")
    if number <= 1 or len(seeds) > 1:
        return {}
    first = composed.train.seed
    return {SEED_AXIS: [f"{SEED_AXIS}={first + replica}" for replica in range(number)]}


def axis_keys(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell.axes))
