"""Successive halving: all trials train to a rung, the best third goes on to the next, the best of all to the end.

A rung is a share of the training, moved to the next planned evaluation after warmup, so that nothing is evaluated
that a full run would not have evaluated: a trial that gets to the end is bit for bit the trial of the grid. All trials
have read equally many tokens at a rung. The rungs are synchronous: what waits for the slowest trial of a rung saves
the wrong promotions of ASHA, which decides with the first trials to arrive.

Learning rates have not annealed at a rung, so its order is not the final one (docs/sweeps.md has a measured case);
the first rung should not be much earlier than a fifth of the training.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Optional

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from sft_experiments.errors import ConfigError
from sft_experiments.plan.cadence import rung_step
from sft_experiments.run.files import read_json
from sft_experiments.run.record import Status, read_record
from sft_experiments.run.trial import Trial
from sft_experiments.sweep.ledger import Sweep
from sft_experiments.sweep.planning import remember

Cells = dict[tuple[str, ...], Trial]
STOP_AT = "stop_at"  # in plan.json: the share of the training after which the worker stops
POOL = "PoolLauncher"


def check_halving(master: DictConfig, trials: Iterable[Trial]) -> None:
    """Raise ``ConfigError`` for rungs that make no sense, and for trials that would not be compared at equal tokens."""
    rungs, factor = list(master.sweep.rungs), master.sweep.reduction_factor
    if rungs != sorted(set(rungs)) or not all(0 < rung < 1 for rung in rungs):
        raise ConfigError(f"sweep.rungs={rungs}: must be rising shares of the training between 0 and 1")
    if factor <= 1:
        raise ConfigError(f"sweep.reduction_factor={factor}: must be above 1")
    if not str(master.hydra.launcher["_target_"]).endswith(POOL):
        raise ConfigError("sweep.rungs need hydra/launcher=pool: other launchers cannot stop a trial at a rung")
    if len({_budget(trial) for trial in trials}) > 1:
        raise ConfigError(
            "sweep.rungs compare trials at equal tokens, but these read different amounts: give all the same data and"
            " train.num_train_epochs, and no train.max_steps beside several batch sizes"
        )


def _budget(trial: Trial) -> tuple[Any, ...]:
    """What decides how many tokens a trial reads."""
    train, fingerprints = trial.config.train, trial.record.fingerprints
    steps = None if train.max_steps is None else (train.max_steps, train.effective_batch_size)
    content = {key: value for key, value in fingerprints.items() if key in {"train", "tokenizer", "chat_template"}}
    return steps or train.num_train_epochs, trial.config.dataset.max_length, json.dumps(content, sort_keys=True)


def launch_in_rungs(master: DictConfig, plans: Sweep, cells: Cells, launcher: Launcher) -> list[JobReturn]:
    """Train all cells to the first rung, the best of them to the second, and so on. The winners end completed.

    What earlier launches trained is taken from their metrics, so a stopped sweep goes on with the same decisions.
    """
    for share in master.sweep.rungs:
        short = {overrides: trial for overrides, trial in cells.items() if score_at(trial, share) is None}
        if short:
            stopping = {overrides: stopped_at(trial, share) for overrides, trial in short.items()}
            remember(plans, stopping)
            launcher.launch([list(overrides) for overrides in stopping], 0)
        cells = promote(cells, share, master.sweep.reduction_factor)
    remember(plans, cells)
    return list(launcher.launch([list(overrides) for overrides in cells], 0)) if cells else []


def stopped_at(trial: Trial, share: float) -> Trial:
    return replace(trial, record=replace(trial.record, plan={**trial.record.plan, STOP_AT: share}))


def promote(cells: Cells, share: float, factor: float) -> Cells:
    """The best of the cells at a rung; the others' records say how they were ranked. Failed trials are not ranked."""
    scores = {overrides: score for overrides, trial in cells.items() if (score := score_at(trial, share)) is not None}
    ranked = sorted(scores, key=scores.__getitem__)
    kept = ranked[: max(1, math.ceil(len(cells) / factor))]
    for rank, overrides in enumerate(ranked[len(kept) :], start=len(kept) + 1):
        note(cells[overrides], f"rank {rank} of {len(ranked)} after {share:.0%} of the training; {len(kept)} went on")
    return {overrides: trial for overrides, trial in cells.items() if overrides in kept}


def note(trial: Trial, text: str) -> None:
    """Write the decision into the record of a trial that waits for nothing else."""
    record = read_record(trial.folder)
    if record.status is Status.pruned and text not in record.notes:
        record.notes.append(text)
        record.write(trial.folder)


def score_at(trial: Trial, share: float) -> Optional[float]:
    """The objective at a rung, turned so that smaller is better; None when the trial has not got there, or no further.

    Raises ``RunFolderError`` for a damaged plan.
    """
    if not trial.folder.metrics.is_file() or read_record(trial.folder).status.is_failure:
        return None
    steps = read_json(trial.folder.plan).get("steps")
    if steps is None:
        return None
    rung = rung_step(share, trial.config.train.eval_steps, steps["total_steps"], steps["warmup_steps"])
    metric = trial.config.objective.metric
    for line in trial.folder.metrics.read_text(encoding="utf-8").splitlines():
        event = json.loads(line) if line.endswith("}") else {}
        if event.get("step") == rung and event.get(metric) is not None:
            return float(event[metric]) * (1 if trial.record.objective_direction == "minimize" else -1)
    return None
