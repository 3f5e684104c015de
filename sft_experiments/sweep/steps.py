"""A sweep from its first trial to its end, in the order it happens."""

from collections.abc import Callable
from typing import Any

from sft_experiments.config.hydra import Composer
from sft_experiments.errors import SweepFailed
from sft_experiments.files import hold
from sft_experiments.launch.trial import Trial
from sft_experiments.schema import SearchMethod
from sft_experiments.sweep.admission import check_disk, check_first, pin_models
from sft_experiments.sweep.finish import finish_sweep
from sft_experiments.sweep.ledger import LOCK_FILE, Sweep
from sft_experiments.sweep.planning import Launch, Planner, plan_search, plan_sweep
from sft_experiments.sweep.rungs import tokens_saved
from sft_experiments.sweep.sweep_view import show_search_plan, show_sweep_outcome, show_sweep_plan


def run_sweep(composer: Composer, launch_with: Callable[[Planner], Launch]) -> list[Any]:
    """Plan every cell, then launch them. Returns what the launcher returned for each.

    ``launch_with`` makes the launcher, which may take planned trials from the planner. Raises ``SweepFailed`` when some
    trials did not complete.
    """
    if composer.master.sweep.search is SearchMethod.bayes:
        return _bayesian_sweep(composer, launch_with)
    planner, cells = plan_sweep(composer)
    sweep, trials = planner.sweep, list(cells.values())
    pin_models(trials)
    with hold(sweep.folder / LOCK_FILE, "a sweep"):
        sweep.cells = {trial.id: trial.record.axes for trial in trials}
        sweep.write()
        show_sweep_plan(sweep, trials)
        check_disk(sweep.folder, trials, sweep.concurrent_trials)
        check_first(composer, trials)
        composer.point_hydra_at(sweep.folder)
        returns = list(launch_with(planner)([list(overrides) for overrides in cells], 0))
        notes = [*tokens_saved(trials), *finish_sweep(sweep, trials)]
    _account_for(sweep, trials, notes)
    return returns


def _bayesian_sweep(composer: Composer, launch_with: Callable[[Planner], Launch]) -> list[Any]:
    """A sweep whose cells are chosen as it goes on."""
    from sft_experiments.sweep.search.bayes import Search  # slow: imports optuna, 0.4 s

    planner, space = plan_search(composer)
    sweep = planner.sweep
    with hold(sweep.folder / LOCK_FILE, "a sweep"):
        sweep.write()
        show_search_plan(sweep, space, int(composer.master.sweep.num_trials))
        composer.point_hydra_at(sweep.folder)
        search = Search(planner, space)
        returns = search.run(launch_with(planner))
        trials = list(search.trials.values())
        notes = finish_sweep(sweep, trials)
    _account_for(sweep, trials, notes)
    return returns


def _account_for(sweep: Sweep, trials: list[Trial], notes: list[str]) -> None:
    """Show what became of all trials; ``SweepFailed`` when some did not complete."""
    failed = show_sweep_outcome(sweep, trials, notes)
    if failed:
        again = "the same command with sweep.retry_failed=true runs them again"
        raise SweepFailed(f"{failed} of {len(trials)} trials did not complete; {again}")
