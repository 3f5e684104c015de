"""The Hydra app behind `sft train` and `sft sweep`: compose, plan, run, and say what came of it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.compose import CONFIG_NAME, conf_dir, explain, register
from sft_experiments.errors import ConfigError, SftError
from sft_experiments.run.launch import run_trial
from sft_experiments.run.trial import Request, Trial, plan_trial
from sft_experiments.show import show_outcome, show_plan, show_what_was_there
from sft_experiments.training.model_gate import check_model_source

FULL_ERROR = "HYDRA_FULL_ERROR"
FROM = "--from"
DRY_RUN = "--dry-run"


def train(arguments: list[str]) -> int:
    """`sft train`: one run, or with -m every combination of the values given; --from RUN_DIR: a recorded run again."""
    split = [
        part
        for argument in arguments
        for part in (argument.split("=", 1) if argument.startswith(f"{FROM}=") else [argument])
    ]
    if FROM in split:
        return train_from(split)
    return run_app("sft train", arguments)


def train_from(arguments: list[str]) -> int:
    """`sft train --from RUN_DIR [key=value ...]`: the recorded config with changes; unchanged, the same trial."""
    from sft_experiments.model_use.recorded import recorded_run

    position = arguments.index(FROM)
    if position + 1 == len(arguments):
        raise ConfigError("--from needs the folder of a run: sft train --from RUN_DIR [key=value ...]")
    overrides = arguments[:position] + arguments[position + 2 :]
    flags = [override for override in overrides if override.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: --from takes only key=value changes; a sweep is launched with sft sweep")
    run_planned(plan_trial(*recorded_run(Path(arguments[position + 1]), overrides)))
    return 0


def sweep(arguments: list[str]) -> int:
    """`sft sweep`: a multirun over learning rate x effective batch size unless another sweep is named.

    With --dry-run it is `sft plan` of that sweep.
    """
    if DRY_RUN in arguments:
        from sft_experiments.plan.commands import plan

        return plan([argument for argument in arguments if argument != DRY_RUN], sweep_by_default=True)
    named = any(argument.startswith("sweep=") for argument in arguments)
    return run_app("sft sweep", ["--multirun", *arguments, *([] if named else ["sweep=lr_x_batch"])])


def run_app(program: str, arguments: list[str]) -> int:
    """Hand the command line to Hydra; a user's mistake comes back as one of our errors."""
    register()
    sys.argv = [program, *arguments]
    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # Hydra then raises instead of printing its own account
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)
    try:
        app()
        if _single_run_failure:
            raise _single_run_failure.pop()
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        raise explain(error) from error
    return 0


_single_run_failure: list[SftError] = []


def task(composed: DictConfig) -> Optional[float]:
    """What Hydra calls. A single run keeps its error aside, because Hydra would print an account of its own first."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return run_composed(composed)
    try:
        refuse_sweep_settings(HydraConfig.get().overrides.task)
        return run_composed(composed)
    except SftError as error:
        _single_run_failure.append(error)
        return None


def refuse_sweep_settings(typed: Sequence[str]) -> None:
    """A sweep that is asked for and not run would be a silent skip."""
    for override in typed:
        if override.lstrip("+").startswith(("sweep=", "sweep.")):
            raise ConfigError(f"{override}: has no effect in a single run; use sft sweep, or sft train -m")


def run_composed(composed: DictConfig) -> float:
    """The work of one trial, the same function for every launcher. Returns the objective.

    Raises one of our errors, which survive the way between processes.
    """
    register()  # a launcher may run this in a fresh process
    return run_planned(plan_trial(composed, request_from_hydra()))


def run_planned(trial: Trial) -> float:
    """Look at the model, show the plan, train, show the result. Returns the objective."""
    commit = check_model_source(trial.config.model)
    if commit is not None:
        trial.record.fingerprints["model_commit"] = commit
    show_plan(trial)
    show_what_was_there(trial)
    record = run_trial(trial)
    show_outcome(trial.folder, record)
    assert record.objective is not None
    return record.objective


def request_from_hydra() -> Request:
    """What Hydra knows of the command line, and, inside a sweep, what the sweep wrote down about its cells."""
    running = HydraConfig.get()
    typed = list(running.overrides.task)
    experiment = running.runtime.choices.get("experiment")
    if running.mode is not RunMode.MULTIRUN:
        return Request(typed, experiment=experiment)
    from sft_experiments.sweep.ledger import read_sweep

    return read_sweep(Path(running.sweep.dir)).request(typed, experiment)
