"""From cells to trials: every one is composed, checked and planned before the first one starts."""

from hydra.types import HydraContext
from omegaconf import DictConfig

from sft_experiments.errors import ConfigError, DataError
from sft_experiments.run.trial import Trial, plan_trial
from sft_experiments.sweep.cells import Cell, compose_cell
from sft_experiments.sweep.ledger import Sweep
from sft_experiments.training.model_gate import check_model_source

# Hydra hands a launcher nothing but overrides: here it finds the trial that they were planned to.
_planned: dict[tuple[str, ...], Trial] = {}


def plan_cells(
    context: HydraContext, master: DictConfig, plans: Sweep, cells: list[Cell]
) -> dict[tuple[str, ...], Trial]:
    """Every cell checked and planned, by its overrides. Equal cells become one trial; all mistakes show at once."""
    trials: dict[tuple[str, ...], Trial] = {}
    seen: set[str] = set()
    mistakes: dict[str, list[str]] = {}
    for cell in cells:
        try:
            trial = plan_cell(context, master, plans, cell.overrides)
        except (ConfigError, DataError) as error:
            mistakes.setdefault(str(error), []).append(cell.label())
            continue
        if trial.id not in seen:
            seen.add(trial.id)
            trials[tuple(cell.overrides)] = trial
    if mistakes:
        raise ConfigError("\n".join(_told(error, labels, len(cells)) for error, labels in mistakes.items()))
    remember(plans, trials)
    return trials


def _told(error: str, labels: list[str], num_cells: int) -> str:
    """A mistake with the cells that make it; alone when all do."""
    return error if len(labels) == num_cells else "\n".join(f"{label}: {error}" for label in labels)


def remember(plans: Sweep, trials: dict[tuple[str, ...], Trial]) -> None:
    """What ``planned_cell`` will find."""
    _planned.update({(str(plans.folder), *overrides): trial for overrides, trial in trials.items()})


def plan_cell(context: HydraContext, master: DictConfig, plans: Sweep, overrides: list[str]) -> Trial:
    """One cell as a trial. Raises ``ConfigError`` or ``DataError``."""
    composed = compose_cell(context, master, overrides)
    return plan_trial(composed, plans.request(overrides, composed.hydra.runtime.choices.get("experiment")))


def planned_cell(context: HydraContext, master: DictConfig, plans: Sweep, overrides: list[str]) -> Trial:
    """The trial that ``plan_cells`` made of these overrides, once; planned now when it did not."""
    earlier = _planned.pop((str(plans.folder), *overrides), None)
    return earlier or plan_cell(context, master, plans, overrides)


def pin_models(trials: list[Trial]) -> None:
    """Look at each model once, before anything is spent; the commit of a Hub model goes into its trials' records."""
    models = {trial.config.model.name: trial.config.model for trial in trials}
    commits = {name: check_model_source(model) for name, model in models.items()}
    for trial in trials:
        if (commit := commits[trial.config.model.name]) is not None:
            trial.record.fingerprints["model_commit"] = commit
