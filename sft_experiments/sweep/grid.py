"""The grid: from axes to cells, every cell composed and checked before the first one starts."""

import copy
import itertools
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.compose import as_mapping
from sft_experiments.errors import ConfigError, DataError, RunFolderError, SweepFailed
from sft_experiments.plan.origin import select
from sft_experiments.run.identity import NOT_IDENTITY, digest, without
from sft_experiments.run.lock import hold
from sft_experiments.run.trial import Trial, folder_name, plan_trial
from sft_experiments.sweep.concurrency import concurrent_trials
from sft_experiments.sweep.finish import finish_sweep
from sft_experiments.sweep.ledger import LOCK_FILE, SWEEP_FILE, Sweep, read_sweep
from sft_experiments.training.model_gate import check_model_source

SHORT_HASH = 8
SEED_AXIS = "train.seed"


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    overrides: list[str]  # the whole command line of the cell
    axes: list[str]  # which of its keys are axes


def sweep(context: HydraContext, master: DictConfig, launcher: Launcher, arguments: list[str]) -> list[JobReturn]:
    """Plan every cell, then launch them. Raises ``SweepFailed`` when some did not complete."""
    from sft_experiments.show import show_sweep_outcome, show_sweep_plan

    plans, trials = plan_sweep(context, master, arguments)
    for model in {trial.config.model.name: trial.config.model for trial in trials.values()}.values():
        check_model_source(model)
    with hold(plans.folder / LOCK_FILE, "a sweep"):
        plans.cells = {trial.id: trial.record.axes for trial in trials.values()}
        plans.write()
        show_sweep_plan(plans, list(trials.values()))
        point_hydra_at(master, plans.folder)
        returns = list(launcher.launch([list(overrides) for overrides in trials], 0))
        notes = finish_sweep(plans, list(trials.values()))
    failed = show_sweep_outcome(plans, list(trials.values()), notes)
    if failed:
        raise SweepFailed(f"{failed} of {len(trials)} trials did not complete; the same command goes on with them")
    return returns


def plan_sweep(
    context: HydraContext, master: DictConfig, arguments: list[str]
) -> tuple[Sweep, dict[tuple[str, ...], Trial]]:
    """The sweep and its cells by their overrides, checked; writes nothing."""
    cells = list(expand(context, master, arguments))
    axes, parallel = axis_keys(cells), concurrent_trials(master, len(cells))
    plans = Sweep(sweep_folder(master, cells), master.name, fixed_hash(master, axes), axes, {}, command(), parallel)
    check_same_sweep(plans)
    return plans, plan_cells(context, master, plans, cells)


def expand(context: HydraContext, master: DictConfig, arguments: list[str]) -> Iterator[Cell]:
    """Every cell: values typed on the command line first, then the sweep group's axes, then seeds.

    A key typed on the command line replaces the axis of the same name, so that the command line always wins.
    """
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(arguments)
    typed = {override.get_key_element(): override_values(override) for override in parsed}
    typed_axes = [key for key, values in typed.items() if len(values) > 1]
    for combination in itertools.product(*typed.values()):
        own_axes = group_axes(context, master, list(combination), set(typed))
        for inner in itertools.product(*own_axes.values()):
            yield Cell([*combination, *inner], [*typed_axes, *own_axes])


def override_values(override: Override) -> list[str]:
    """The overrides that one argument stands for: several for ``key=a,b``, one otherwise."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: a grid needs listed values (a,b,c or range(1,5))")
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
    if composed.sweep.num_seeds > 1 and SEED_AXIS not in typed:
        first = composed.train.seed
        axes[SEED_AXIS] = [f"{SEED_AXIS}={first + replica}" for replica in range(composed.sweep.num_seeds)]
    return axes


_composed: dict[tuple[str, ...], DictConfig] = {}
_without_hydra: dict[tuple[str, ...], DictConfig] = {}


def compose_cell(context: HydraContext, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The composed config of one cell. Remembered, since grid and launcher both ask for it.

    Composing anew takes 50 to 100 ms. Cells that differ in values only, not in choices of groups, are one composition
    with the values put into a copy, last, as Hydra does it too (tests/sweep/test_compose_cell.py).
    """
    key = (*master.hydra.overrides.hydra, *overrides)
    if key not in _composed:
        values = [override for override in overrides if re.match(r"(?!hydra)\w+\.[\w.]+=", override)]
        cell = _with_values(context, master, [item for item in overrides if item not in values], values)
        _composed[key] = cell or context.config_loader.load_sweep_config(master, list(overrides))
    return _composed[key]


def _with_values(
    context: HydraContext, master: DictConfig, choices: list[str], values: list[str]
) -> Optional[DictConfig]:
    """A copy of the composition of ``choices`` with ``values``; None when one is wrong: Hydra's error says where."""
    if not values:
        return None
    chosen = compose_cell(context, master, choices)
    key = (*master.hydra.overrides.hydra, *choices)
    if key not in _without_hydra:
        _without_hydra[key] = OmegaConf.masked_copy(chosen, [str(name) for name in chosen if name != "hydra"])
    cell = copy.deepcopy(_without_hydra[key])
    try:
        for parsed in OverridesParser.create(config_loader=context.config_loader).parse_overrides(values):
            OmegaConf.update(cell, parsed.key_or_group, parsed.value(), merge=True)
    except OmegaConfBaseException:
        return None
    with open_dict(cell):
        cell.hydra = {"runtime": {"choices": chosen.hydra.runtime.choices}}
    return cell


def plan_cells(
    context: HydraContext, master: DictConfig, plans: Sweep, cells: list[Cell]
) -> dict[tuple[str, ...], Trial]:
    """Every cell checked and planned, by its overrides. Equal cells become one trial; all mistakes show at once."""
    trials: dict[tuple[str, ...], Trial] = {}
    seen: set[str] = set()
    mistakes: list[str] = []
    for cell in cells:
        composed = compose_cell(context, master, cell.overrides)
        request = plans.request(cell.overrides, composed.hydra.runtime.choices.get("experiment"))
        try:
            trial = plan_trial(composed, request)
        except (ConfigError, DataError) as error:
            mistakes.append(f"{' '.join(cell.overrides)}: {error}" if len(cells) > 1 else str(error))
            continue
        if trial.id not in seen:
            seen.add(trial.id)
            trials[tuple(cell.overrides)] = trial
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return trials


def axis_keys(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell.axes))


def fixed_hash(master: DictConfig, axes: list[str]) -> str:
    """A hash of everything that decides results and is not an axis, so that a changed setting is a new sweep.

    Seeds are left out: replicas that are added later belong beside the cells they replicate.
    """
    values = as_mapping(master, resolve=False)
    values.pop("hydra", None)
    files = {key: select(values, key) for key in ("dataset.train_files", "dataset.validation_files")}
    fixed_files = {key: value for key, value in files.items() if key.split(".")[0] not in axes}
    return digest([without(values, (*NOT_IDENTITY, SEED_AXIS, "train.data_seed", *axes)), fixed_files])


def sweep_folder(master: DictConfig, cells: list[Cell]) -> Path:
    """The folder that the user named, or ``<output_dir>/<name>-<short hash>``."""
    if explicit_folder(master) is not None:
        return Path(master.hydra.sweep.dir)
    name = folder_name(f"{master.name}")
    return Path(master.output_dir) / f"{name}-{fixed_hash(master, axis_keys(cells))[:SHORT_HASH]}"


def explicit_folder(master: DictConfig) -> Optional[str]:
    prefix = "hydra.sweep.dir="
    return next((item[len(prefix) :] for item in master.hydra.overrides.hydra if item.startswith(prefix)), None)


def check_same_sweep(plans: Sweep) -> None:
    """Refuse to mix two sweeps in one folder."""
    if not (plans.folder / SWEEP_FILE).is_file():
        return
    earlier = read_sweep(plans.folder)
    if earlier.fixed_hash != plans.fixed_hash:
        raise RunFolderError(
            f"hydra.sweep.dir={plans.folder} holds another sweep ({earlier.command}); name another folder or none"
        )


def point_hydra_at(master: DictConfig, folder: Path) -> None:
    """Let every launcher, also one that composes again elsewhere, see the folder that was decided here."""
    if explicit_folder(master) is None:
        with open_dict(master):
            master.hydra.sweep.dir = str(folder)
            master.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")


def command() -> str:
    """The command line as typed."""
    return shlex.join(["sft", Path(sys.argv[0]).name.removeprefix("sft "), *sys.argv[1:]])
