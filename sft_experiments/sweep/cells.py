"""The cells of a sweep: which overrides each one stands for, and what they compose to."""

import itertools
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.compose import as_mapping
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


def expand(context: HydraContext, master: DictConfig, arguments: list[str]) -> Iterator[Cell]:
    """Every cell: values typed on the command line first, then the sweep group's axes, then seeds.

    A key typed on the command line replaces the axis of the same name, so that the command line always wins.
    """
    parsed = parse(context, arguments)
    typed = {override.get_key_element(): override_values(override) for override in parsed}
    typed_axes = [key for key, values in typed.items() if len(values) > 1]
    for combination in itertools.product(*typed.values()):
        own_axes = group_axes(context, master, list(combination), set(typed))
        for inner in itertools.product(*own_axes.values()):
            yield Cell([*combination, *inner], [*typed_axes, *own_axes])


def parse(context: HydraContext, arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them."""
    return OverridesParser.create(config_loader=context.config_loader).parse_overrides(list(arguments))


def override_values(override: Override) -> list[str]:
    """The overrides that one argument stands for: several for ``key=a,b``, one otherwise."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: a grid needs listed values (a,b,c or range(1,5)), sweep=random takes intervals"
        )
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def group_axes(context: HydraContext, master: DictConfig, fixed: list[str], typed: set[str]) -> dict[str, list[str]]:
    """The axes of the sweep group for one combination of typed values, as overrides.

    Composed anew for each combination, because the default grid follows the model's size.
    """
    composed = compose_cell(context, master, fixed)
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


_composed: dict[tuple[str, ...], DictConfig] = {}
_without_hydra: dict[tuple[str, ...], bytes] = {}  # pickled: read back, a copy takes 1 ms; deepcopy takes 5


def compose_cell(context: HydraContext, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The composed config of one cell. Remembered, since grid and launcher both ask for it.

    Composing anew takes 100 to 150 ms. Cells that differ in values only, not in choices of groups, are one composition
    with the values put into a copy, last, as Hydra does it too (tests/sweep/test_cells.py).
    """
    key = (*master.hydra.overrides.hydra, *overrides)
    if key not in _composed:
        cell = _with_values(context, master, overrides)
        _composed[key] = cell or context.config_loader.load_sweep_config(master, list(overrides))
    return _composed[key]


def _with_values(context: HydraContext, master: DictConfig, overrides: Sequence[str]) -> Optional[DictConfig]:
    """A copy of the composition of the choices among ``overrides`` with the values among them.

    None when there are only choices, or when a value is wrong: Hydra's error says where. With the choices of ``master``
    it is a copy of that: a value which ``master`` has was typed as the only one of its key, so every cell sets it too.
    """
    choices, values = _choices_and_values(overrides)
    typed = list(master.hydra.overrides.task)
    is_master = choices == _choices_and_values(typed)[0]
    if not values and not is_master:
        return None
    chosen = master if is_master else compose_cell(context, master, choices)
    key = (*master.hydra.overrides.hydra, *(typed if is_master else choices))
    if key not in _without_hydra:
        ours = OmegaConf.masked_copy(chosen, [str(name) for name in chosen if name != "hydra"])
        _without_hydra[key] = pickle.dumps(ours)
    cell = pickle.loads(_without_hydra[key])
    assert isinstance(cell, DictConfig)
    try:
        for parsed in parse(context, values):
            OmegaConf.update(cell, parsed.key_or_group, parsed.value(), merge=True)
    except OmegaConfBaseException:
        return None
    with open_dict(cell):
        cell.hydra = {"runtime": {"choices": chosen.hydra.runtime.choices}}
    return cell


def _choices_and_values(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that choose an option of a group, add or delete a key; and plain ``group.key=value``."""
    values = [item for item in overrides if re.match(r"(?!hydra)\w+\.[\w.]+=", item)]
    return [item for item in overrides if item not in values], values


def axis_keys(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell.axes))
