"""`sft train` and `sft sweep`: compose, plan, run, and say what came of it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from sft_experiments.commands import Command, run
from sft_experiments.config.hydra import Job, Request, run_app
from sft_experiments.config.recorded import recorded_run
from sft_experiments.errors import ConfigError
from sft_experiments.launch.retry import run_trial
from sft_experiments.launch.trial import Trial, plan_trial
from sft_experiments.models.shape import check_model_source
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Record, Status
from sft_experiments.sweep.ledger import read_sweep
from sft_experiments.sweep.sweep_view import show_where_to_look
from sft_experiments.terminal import console, show_notes, show_warnings
from sft_experiments.values import format_score, format_value


def _add_train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--from", dest="run_folder", metavar="RUN_DIR", type=Path, help="a recorded run, with changes")
    _add_dry_run(parser)


def _add_dry_run(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would run: sft plan of the same")


def _train(parsed: Namespace) -> int:
    """One run, or with -m every combination of the values given; with --from RUN_DIR a recorded run again."""
    if parsed.dry_run:
        return run("plan", [*(["--from", str(parsed.run_folder)] if parsed.run_folder else []), *parsed.settings])
    if parsed.run_folder is None:
        run_app("sft train", parsed.settings, run_job)
        return 0
    flags = [setting for setting in parsed.settings if setting.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: --from takes only key=value changes; a sweep is launched with sft sweep")
    run_planned(plan_trial(*recorded_run(parsed.run_folder, parsed.settings)))
    return 0


def _add_sweep_arguments(parser: ArgumentParser) -> None:
    _add_dry_run(parser)


def _sweep(parsed: Namespace) -> int:
    """A multirun over learning rate x effective batch size unless another sweep is named."""
    named = any(setting.startswith("sweep=") for setting in parsed.settings)
    settings = ["--multirun", *parsed.settings, *([] if named else ["sweep=lr_x_batch"])]
    if parsed.dry_run:
        return run("plan", settings)
    run_app("sft sweep", settings, run_job)
    return 0


def run_job(composed: DictConfig, job: Job) -> float:
    """The work of one trial, the same function for every launcher. Returns the objective.

    Raises one of our errors, which survive the way between processes.
    """
    return run_planned(plan_trial(composed, _request_of(job)))


def _request_of(job: Job) -> Request:
    """What was asked for; inside a sweep, with what the sweep wrote down about its cells."""
    if job.sweep_folder is not None:
        return read_sweep(job.sweep_folder).request(job.overrides, job.written)
    refuse_sweep_settings(job.overrides)
    return Request(job.overrides, written=job.written, config_dirs=job.config_dirs)


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


def show_plan(trial: Trial) -> None:
    """The plan of one run: where it goes, what was derived, where each value comes from, what is unusual."""
    batch = trial.plan.batch
    console.print(f"[bold]{trial.config.name}[/bold]  trial {trial.id}  [dim]{trial.folder.path}[/dim]")
    console.print(
        f"  batch      {batch.per_device_train_batch_size} per device x {batch.gradient_accumulation_steps}"
        f" accumulation x {batch.num_devices} device = [bold]{batch.effective_batch_size}[/bold]"
    )
    console.print(f"  device     {trial.plan.device.value} [dim]({trial.plan.device.reason})[/dim]")
    console.print(f"  precision  {trial.plan.precision.value} [dim]({trial.plan.precision.reason})[/dim]")
    if trial.plan.tuning:
        options = "; ".join(f"{name} {choice.value} ({choice.reason})" for name, choice in trial.plan.tuning.items())
        console.print(f"  tuning     [dim]{options}[/dim]")
    console.print(values_table(trial.plan.values))
    show_warnings(trial.plan.warnings)


def values_table(values: dict[str, dict[str, Any]]) -> Table:
    """Each dial with its value and its origin."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for key, entry in values.items():
        table.add_row(f"  {key}", Text(format_value(entry["value"]), style="bold"), Text(entry["origin"], style="dim"))
    return table


def show_what_was_there(trial: Trial) -> None:
    """That nothing is trained again, when the same trial is complete."""
    earlier = trial.recorded()
    if earlier is not None and earlier.status is Status.completed and not trial.config.rerun:
        place = f" in {trial.elsewhere.path}" if trial.elsewhere else ""
        console.print(f"  completed at {earlier.finished_at}{place}: nothing is trained (rerun=true trains it again)")


def show_outcome(folder: RunFolder, record: Record) -> None:
    """The result of one run and where to look next."""
    best = record.metrics.get("best/step")
    console.print(
        f"[bold green]completed[/bold green]  {record.objective_metric} [bold]{format_score(record.objective)}[/bold]"
        f" (step {best} of {record.metrics.get('total_steps')}, {record.timings.get('total', 0):.0f} s)"
    )
    console.print(f"  model      {folder.model}")
    show_notes(record.notes)
    show_where_to_look(folder.path, record.config)


COMMANDS = {
    "train": Command(_train, _add_train_arguments, takes_settings=True, help_by_hydra=True),
    "sweep": Command(_sweep, _add_sweep_arguments, takes_settings=True, help_by_hydra=True),
}
