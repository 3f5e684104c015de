"""A sweep from its axes to its end: every cell is composed and checked before the first one starts."""

import shlex
import sys
from pathlib import Path
from typing import Optional

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from sft_experiments.compose import as_mapping
from sft_experiments.errors import RunFolderError, SweepFailed
from sft_experiments.plan.origin import select
from sft_experiments.run.identity import NOT_IDENTITY, digest, without
from sft_experiments.run.lock import hold
from sft_experiments.run.trial import Trial, folder_name
from sft_experiments.schema import SearchMethod
from sft_experiments.sweep.bayes import Search, check_search
from sft_experiments.sweep.cells import SEED_AXIS, axis_keys, expand
from sft_experiments.sweep.check_first import check_first
from sft_experiments.sweep.concurrency import concurrent_trials
from sft_experiments.sweep.disk import check_disk
from sft_experiments.sweep.early_stopping import tokens_saved
from sft_experiments.sweep.finish import finish_sweep
from sft_experiments.sweep.ledger import LOCK_FILE, SWEEP_FILE, Sweep, read_sweep
from sft_experiments.sweep.planning import pin_models, plan_cells
from sft_experiments.sweep.space import Space, random_cells, search_space
from sft_experiments.sweep.stoppable import check_early_stopping

SHORT_HASH = 8


def sweep(context: HydraContext, master: DictConfig, launcher: Launcher, arguments: list[str]) -> list[JobReturn]:
    """Plan every cell, then launch them. Raises ``SweepFailed`` when some did not complete."""
    from sft_experiments.show import show_sweep_plan

    if master.sweep.search is SearchMethod.bayes:
        return bayesian_sweep(context, master, launcher, arguments)
    plans, cells = plan_sweep(context, master, arguments)
    trials = list(cells.values())
    pin_models(trials)
    with hold(plans.folder / LOCK_FILE, "a sweep"):
        plans.cells = {trial.id: trial.record.axes for trial in trials}
        plans.write()
        show_sweep_plan(plans, trials)
        check_disk(plans.folder, trials, plans.concurrent_trials)
        check_first(master, trials)
        point_hydra_at(master, plans.folder)
        returns = list(launcher.launch([list(overrides) for overrides in cells], 0))
        notes = [*tokens_saved(trials), *finish_sweep(plans, trials)]
    account_for(plans, trials, notes)
    return returns


def bayesian_sweep(
    context: HydraContext, master: DictConfig, launcher: Launcher, arguments: list[str]
) -> list[JobReturn]:
    """The same with cells that are chosen as the sweep goes on."""
    from sft_experiments.show import show_search_plan

    plans, space = plan_search(context, master, arguments)
    with hold(plans.folder / LOCK_FILE, "a sweep"):
        plans.write()
        show_search_plan(plans, space, int(master.sweep.num_trials))
        point_hydra_at(master, plans.folder)
        search = Search(context, master, plans, space)
        returns = search.run(launcher)
        trials = list(search.trials.values())
        notes = finish_sweep(plans, trials)
    account_for(plans, trials, notes)
    return returns


def account_for(plans: Sweep, trials: list[Trial], notes: list[str]) -> None:
    """Show what became of all trials; ``SweepFailed`` when some did not complete."""
    from sft_experiments.show import show_sweep_outcome

    failed = show_sweep_outcome(plans, trials, notes)
    if failed:
        raise SweepFailed(f"{failed} of {len(trials)} trials did not complete; the same command goes on with them")


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


def point_hydra_at(master: DictConfig, folder: Path) -> None:
    """Let every launcher, also one that composes again elsewhere, see the folder that was decided here."""
    if explicit_folder(master) is None:
        with open_dict(master):
            master.hydra.sweep.dir = str(folder)
            master.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")


def command() -> str:
    """The command line as typed."""
    return shlex.join(["sft", Path(sys.argv[0]).name.removeprefix("sft "), *sys.argv[1:]])
