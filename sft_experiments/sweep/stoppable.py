"""Whether a sweep can stop its bad trials early, before anything is spent."""

import json
import math
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig

from sft_experiments.errors import ConfigError
from sft_experiments.run.trial import Trial
from sft_experiments.schema import SearchMethod

POOL = "PoolLauncher"
OF_RUNGS = ("sweep.rungs=", "sweep.reduction_factor=")


def check_early_stopping(master: DictConfig, trials: Iterable[Trial] = ()) -> None:
    """Raise ``ConfigError`` for rules that make no sense, and for trials that would not be compared at equal tokens."""
    if master.sweep.early_stopping is None:
        if typed := [item for item in master.hydra.overrides.task if item.startswith(OF_RUNGS)]:
            raise ConfigError(f"{typed[0]} does nothing without sweep.early_stopping=asha (or halving, median)")
        return
    rungs, factor = list(master.sweep.rungs), master.sweep.reduction_factor
    if not rungs or rungs != sorted(set(rungs)) or not all(0 < rung < 1 for rung in rungs):
        raise ConfigError(f"sweep.rungs={rungs}: must be rising shares of the training between 0 and 1")
    if not 1 < factor < math.inf:
        raise ConfigError(f"sweep.reduction_factor={factor}: must be a number above 1")
    rule = f"sweep.early_stopping={master.sweep.early_stopping.name}"
    if master.sweep.search is SearchMethod.bayes:
        raise ConfigError(f"{rule}: Bayesian search learns from trained trials; use sweep.search=random or grid")
    if not str(master.hydra.launcher["_target_"]).endswith(POOL):
        raise ConfigError(f"{rule} needs hydra/launcher=pool: other launchers cannot stop a trial at a rung")
    _check_trials(rule, list(trials))


def _check_trials(rule: str, trials: list[Trial]) -> None:
    if len({_budget(trial) for trial in trials}) > 1:
        raise ConfigError(
            f"{rule} compares trials at equal tokens, but these read different amounts: give all the same data and"
            " train.num_train_epochs, and no train.max_steps beside several batch sizes"
        )
    seeds = sorted({trial.config.train.seed for trial in trials})
    if len(seeds) > 1:
        raise ConfigError(
            f"{rule} would choose among the seeds {seeds}: stop with one seed, then confirm the best with sweep=seeds"
        )


def _budget(trial: Trial) -> tuple[Any, ...]:
    """What decides how many tokens a trial reads."""
    train, fingerprints = trial.config.train, trial.record.fingerprints
    steps = None if train.max_steps is None else (train.max_steps, train.effective_batch_size)
    content = {key: value for key, value in fingerprints.items() if key in {"train", "tokenizer", "chat_template"}}
    return steps or train.num_train_epochs, trial.config.dataset.max_length, json.dumps(content, sort_keys=True)
