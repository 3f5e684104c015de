"""`sft train` and `sft sweep`: compose, plan, run, and say what came of it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from sft_experiments.commands import Command
from sft_experiments.commands.plan import show_plan_of_sweep
from sft_experiments.config.hydra import Job, Request, run_app
from sft_experiments.config.recorded import recorded_run
from sft_experiments.errors import ConfigError
from sft_experiments.launch.single import run_trial
from sft_experiments.launch.trial import Trial, plan_trial
from sft_experiments.launch.trial_view import show_outcome, show_plan, show_what_was_there
from sft_experiments.models.source import check_model_source
from sft_experiments.sweep.ledger import read_sweep


def _add_train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--from", dest="run_folder", metavar="RUN_DIR", type=Path, help="a recorded run, with changes")


def _train(parsed: Namespace) -> int:
    """One run, or with -m every combination of the values given; with --from RUN_DIR a recorded run again."""
    if parsed.run_folder is None:
        run_app("sft train", parsed.settings, run_job)
        return 0
    flags = [setting for setting in parsed.settings if setting.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: --from takes only key=value changes; a sweep is launched with sft sweep")
    run_planned(plan_trial(*recorded_run(parsed.run_folder, parsed.settings)))
    return 0


def _add_sweep_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would run: sft plan of this sweep")


def _sweep(parsed: Namespace) -> int:
    """A multirun over learning rate x effective batch size unless another sweep is named."""
    if parsed.dry_run:
        return show_plan_of_sweep(parsed.settings)
    named = any(setting.startswith("sweep=") for setting in parsed.settings)
    run_app("sft sweep", ["--multirun", *parsed.settings, *([] if named else ["sweep=lr_x_batch"])], run_job)
    return 0


def run_job(composed: DictConfig, job: Job) -> float:
    """The work of one trial, the same function for every launcher. Returns the objective.

    Raises one of our errors, which survive the way between processes.
    """
    return run_planned(plan_trial(composed, _request_of(job)))


def _request_of(job: Job) -> Request:
    """What was asked for; inside a sweep, with what the sweep wrote down about its cells."""
    if job.sweep_folder is not None:
        return read_sweep(job.sweep_folder).request(job.overrides, job.experiment_keys)
    refuse_sweep_settings(job.overrides)
    return Request(job.overrides, experiment_keys=job.experiment_keys)


def refuse_sweep_settings(typed: Sequence[str]) -> None:
    """A sweep that is asked for and not run would be a silent skip."""
    for override in typed:
        if override.lstrip("+").startswith(("sweep=", "sweep.")):
            raise ConfigError(f"{override}: has no effect in a single run; use sft sweep, or sft train -m")


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


COMMANDS = {
    "train": Command(_train, _add_train_arguments, takes_settings=True, help_by_hydra=True),
    "sweep": Command(_sweep, _add_sweep_arguments, takes_settings=True, help_by_hydra=True),
}
