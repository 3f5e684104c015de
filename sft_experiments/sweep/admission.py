"""A sweep runs the sanity check once before it spends anything: on its middle cell, in a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

from sft_experiments.config.hydra import Composer
from sft_experiments.errors import ConfigError, TrainingFailed
from sft_experiments.launch.start import worker_environment
from sft_experiments.launch.trial import Trial
from sft_experiments.models.shape import check_model_source, shape_of
from sft_experiments.plan.forecast import disk_bytes
from sft_experiments.schema import DataSource
from sft_experiments.values import GIB, as_override


def wants_check(trials: list[Trial]) -> bool:
    """``sweep.check``; null means yes for the user's own data, once: not when any cell has been started before."""
    config = trials[0].config
    if config.sweep.check is not None:
        return config.sweep.check
    return config.dataset.source is not DataSource.demo and not any(trial.recorded() for trial in trials)


def check_first(composer: Composer, trials: list[Trial]) -> None:
    """Run ``sft check`` on the middle cell, its report on the terminal. Raises ``TrainingFailed`` when it fails."""
    if not wants_check(trials):
        return
    middle = trials[len(trials) // 2]
    done = subprocess.run(check_command(composer, middle), env=worker_environment(middle.plan.threads))
    if done.returncode != 0:
        cell = middle.record.label or middle.id
        raise TrainingFailed(f"the check of {cell} failed, nothing was trained; sweep.check=false goes on regardless")


def check_command(composer: Composer, trial: Trial) -> list[str]:
    """The check of one cell, composed from the same folders as the sweep."""
    folders = [word for folder in composer.config_dirs for word in ("--config-dir", folder)]
    overrides = [item for item in trial.record.overrides if not item.lstrip("+").startswith("sweep")]
    cell = [as_override(key, value) for key, value in trial.record.axes.items()]
    return [sys.executable, "-m", "sft_experiments", "check", *folders, *overrides, *cell]


def check_disk(folder: Path, trials: list[Trial], parallel: int) -> None:
    """Raise ``ConfigError`` when the trials that are to run cannot fit: those that train at once, and those kept."""
    to_run = [trial.config for trial in trials if trial.needs_running(trial.config.sweep.retry_failed)]
    shapes = [(config, shape_of(config.model)) for config in to_run]
    sizes = sorted((disk_bytes(config, shape) for config, shape in shapes if shape is not None), reverse=True)
    if not sizes:
        return
    keep = trials[0].config.sweep.keep_models
    keeps_all = keep < 0 or trials[0].config.sweep.early_stopping  # what waits at a rung keeps its checkpoint
    needed = sum(sizes if keeps_all else sizes[: parallel + keep])
    free = shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.is_dir())).free
    if needed > free:
        raise ConfigError(
            f"{folder}: the sweep needs up to {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; lower"
            f" sweep.keep_models={keep}, sweep.concurrent_trials={parallel} or train.save_total_limit, or name another"
            " output_dir"
        )


def pin_models(trials: list[Trial]) -> None:
    """Look at each model once, before anything is spent; the commit of a Hub model goes into its trials' records."""
    models = {trial.config.model.name: trial.config.model for trial in trials}
    commits = {name: check_model_source(model) for name, model in models.items()}
    for trial in trials:
        if (commit := commits[trial.config.model.name]) is not None:
            trial.record.fingerprints["model_commit"] = commit
