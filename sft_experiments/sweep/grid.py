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
from sft_experiments.errors import ConfigError, DataError, RunFolderError, SweepFailed
from sft_experiments.plan.origin import select
from sft_experiments.run.identity import NOT_IDENTITY, digest, without
from sft_experiments.run.lock import hold
from sft_experiments.run.trial import Trial, folder_name, plan_trial
from sft_experiments.sweep.cells import SEED_AXIS, Cell, axis_keys, compose_cell, expand
from sft_experiments.sweep.check_first import check_first
from sft_experiments.sweep.concurrency import concurrent_trials
from sft_experiments.sweep.finish import finish_sweep
from sft_experiments.sweep.ledger import LOCK_FILE, SWEEP_FILE, Sweep, read_sweep
from sft_experiments.training.model_gate import check_model_source

SHORT_HASH = 8


def sweep(context: HydraContext, master: DictConfig, launcher: Launcher, arguments: list[str]) -> list[JobReturn]:
    """Plan every cell, then launch them. Raises ``SweepFailed`` when some did not complete."""
    from sft_experiments.show import show_sweep_outcome, show_sweep_plan

    plans, trials = plan_sweep(context, master, arguments)
    pin_models(list(trials.values()))
    with hold(plans.folder / LOCK_FILE, "a sweep"):
        plans.cells = {trial.id: trial.record.axes for trial in trials.values()}
        plans.write()
        show_sweep_plan(plans, list(trials.values()))
        check_first(master, list(trials.values()))
        point_hydra_at(master, plans.folder)
        returns = list(launcher.launch([list(overrides) for overrides in trials], 0))
        notes = finish_sweep(plans, list(trials.values()))
    failed = show_sweep_outcome(plans, list(trials.values()), notes)
    if failed:
        raise SweepFailed(f"{failed} of {len(trials)} trials did not complete; the same command goes on with them")
    return returns


def pin_models(trials: list[Trial]) -> None:
    """Look at each model once, before anything is spent; the commit of a Hub model goes into its trials' records."""
    models = {trial.config.model.name: trial.config.model for trial in trials}
    commits = {name: check_model_source(model) for name, model in models.items()}
    for trial in trials:
        if (commit := commits[trial.config.model.name]) is not None:
            trial.record.fingerprints["model_commit"] = commit


def plan_sweep(
    context: HydraContext, master: DictConfig, arguments: list[str]
) -> tuple[Sweep, dict[tuple[str, ...], Trial]]:
    """The sweep and its cells by their overrides, checked; writes nothing."""
    cells = list(expand(context, master, arguments))
    axes, parallel = axis_keys(cells), concurrent_trials(master, len(cells))
    plans = Sweep(sweep_folder(master, cells), master.name, fixed_hash(master, axes), axes, {}, command(), parallel)
    check_same_sweep(plans)
    return plans, plan_cells(context, master, plans, cells)


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
