"""A sweep from its first trial to its end."""

from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from sft_experiments.errors import SweepFailed
from sft_experiments.run.lock import hold
from sft_experiments.run.trial import Trial
from sft_experiments.schema import SearchMethod
from sft_experiments.show import show_search_plan, show_sweep_outcome, show_sweep_plan
from sft_experiments.sweep.bayes import Search
from sft_experiments.sweep.check_first import check_first
from sft_experiments.sweep.disk import check_disk
from sft_experiments.sweep.early_stopping import tokens_saved
from sft_experiments.sweep.finish import finish_sweep
from sft_experiments.sweep.grid import explicit_folder, plan_search, plan_sweep
from sft_experiments.sweep.ledger import LOCK_FILE, Sweep
from sft_experiments.sweep.planning import pin_models


def sweep(context: HydraContext, master: DictConfig, launcher: Launcher, arguments: list[str]) -> list[JobReturn]:
    """Plan every cell, then launch them. Raises ``SweepFailed`` when some did not complete."""
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
    failed = show_sweep_outcome(plans, trials, notes)
    if failed:
        again = "the same command with sweep.retry_failed=true runs them again"
        raise SweepFailed(f"{failed} of {len(trials)} trials did not complete; {again}")


def point_hydra_at(master: DictConfig, folder: Path) -> None:
    """Let every launcher, also one that composes again elsewhere, see the folder that was decided here."""
    if explicit_folder(master) is None:
        with open_dict(master):
            master.hydra.sweep.dir = str(folder)
            master.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")
