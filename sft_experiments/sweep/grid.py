"""A sweep before it starts: its folder, its identity, every cell composed and checked. Light, for `sft plan`."""

import shlex
import sys
from pathlib import Path
from typing import Optional

from hydra.types import HydraContext
from omegaconf import DictConfig

from sft_experiments.compose import as_mapping
from sft_experiments.errors import RunFolderError
from sft_experiments.plan.origin import select
from sft_experiments.run.identity import NOT_IDENTITY, digest, without
from sft_experiments.run.trial import Trial, folder_name
from sft_experiments.schema import SearchMethod
from sft_experiments.sweep.cells import SEED_AXIS, axis_keys, expand
from sft_experiments.sweep.concurrency import concurrent_trials
from sft_experiments.sweep.ledger import SWEEP_FILE, Sweep, read_sweep
from sft_experiments.sweep.planning import plan_cells
from sft_experiments.sweep.space import Space, random_cells, search_space
from sft_experiments.sweep.stoppable import check_early_stopping

SHORT_HASH = 8


def plan_sweep(
    context: HydraContext, master: DictConfig, arguments: list[str]
) -> tuple[Sweep, dict[tuple[str, ...], Trial]]:
    """The sweep and its cells by their overrides, checked; writes nothing."""
    is_random = master.sweep.search is SearchMethod.random
    cells = list((random_cells if is_random else expand)(context, master, arguments))
    plans = new_sweep(master, axis_keys(cells), len(cells))
    trials = plan_cells(context, master, plans, cells)
    check_early_stopping(master, trials.values())
    return plans, trials


def plan_search(context: HydraContext, master: DictConfig, arguments: list[str]) -> tuple[Sweep, Space]:
    """A Bayesian search and what it may choose from, checked; writes nothing."""
    from sft_experiments.sweep.bayes import check_search  # late: it knows all that a launch does

    check_early_stopping(master)
    space = search_space(context, master, arguments)
    plans = new_sweep(master, list(space.dimensions), int(master.sweep.num_trials))
    check_search(context, master, plans, space)
    return plans, space


def new_sweep(master: DictConfig, axes: list[str], num_cells: int) -> Sweep:
    """What is known before the cells are. Raises ``RunFolderError`` when the folder holds another sweep."""
    parallel, fixed = concurrent_trials(master, num_cells), fixed_hash(master, axes)
    plans = Sweep(sweep_folder(master, fixed), master.name, fixed, axes, {}, command(), parallel)
    check_same_sweep(plans)
    return plans


def fixed_hash(master: DictConfig, axes: list[str]) -> str:
    """A hash of everything that decides results and is not an axis, so that a changed setting is a new sweep.

    Seeds, and axes of the sweep group that are cut to one value, are left out as well: replicas and parts of a grid
    belong beside the cells that are finished.
    """
    values = as_mapping(master, resolve=False)
    values.pop("hydra", None)
    varied = {*axes, *values["sweep"]["axes"], SEED_AXIS, "train.data_seed"}
    files = {key: select(values, key) for key in ("dataset.train_files", "dataset.validation_files")}
    fixed_files = {key: value for key, value in files.items() if key.split(".")[0] not in varied}
    return digest([without(values, (*NOT_IDENTITY, *varied)), fixed_files])


def sweep_folder(master: DictConfig, fixed: str) -> Path:
    """The folder that the user named, or ``<output_dir>/<name>-<short hash>``."""
    if explicit_folder(master) is not None:
        return Path(master.hydra.sweep.dir)
    return Path(master.output_dir) / f"{folder_name(master.name)}-{fixed[:SHORT_HASH]}"


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


def command() -> str:
    """The command line as typed."""
    return shlex.join(["sft", Path(sys.argv[0]).name.removeprefix("sft "), *sys.argv[1:]])
