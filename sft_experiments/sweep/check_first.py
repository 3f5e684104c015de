"""A sweep runs the sanity check once before it spends anything: on its middle cell, in a process of its own."""

import subprocess
import sys

from omegaconf import DictConfig

from sft_experiments.errors import TrainingFailed
from sft_experiments.run.launch import worker_environment
from sft_experiments.run.trial import Trial
from sft_experiments.schema import DataSource


def wants_check(trials: list[Trial]) -> bool:
    """``sweep.check``; null means yes for the user's own data, once: not when any cell has been started before."""
    config = trials[0].config
    if config.sweep.check is not None:
        return config.sweep.check
    return config.dataset.source is not DataSource.demo and not any(trial.recorded() for trial in trials)


def check_first(master: DictConfig, trials: list[Trial]) -> None:
    """Run ``sft check`` on the middle cell, its report on the terminal. Raises ``TrainingFailed`` when it fails."""
    if not wants_check(trials):
        return
    middle = trials[len(trials) // 2]
    done = subprocess.run(check_command(master, middle), env=worker_environment(middle.plan.threads))
    if done.returncode != 0:
        cell = middle.record.label or middle.id
        raise TrainingFailed(f"the check of {cell} failed, nothing was trained; sweep.check=false goes on regardless")


def check_command(master: DictConfig, trial: Trial) -> list[str]:
    """The check of one cell, composed from the same folders as the sweep."""
    sources = [source for source in master.hydra.runtime.config_sources if source.provider == "command-line"]
    folders = [flag for source in sources for flag in ("--config-dir", str(source.path))]
    overrides = [item for item in trial.record.overrides if not item.lstrip("+").startswith("sweep")]
    cell = [f"{key}={value}" for key, value in trial.record.axes.items()]
    return [sys.executable, "-m", "sft_experiments", "check", *folders, *overrides, *cell]
