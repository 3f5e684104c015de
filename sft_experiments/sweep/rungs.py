"""Early stopping of bad trials: each trains to a rung and waits there, with its checkpoint, until a rule lets it go on.

A rung is a share of the training, moved to the next planned evaluation after warmup, so that nothing is evaluated that
a full run would not have evaluated: a trial that gets to the end is bit for bit the trial of the grid, and all have
read equally many tokens at a rung.

Learning rates have not annealed at a rung, so its order is not the final one (docs/sweeps.md has a measured case).
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Optional

from sft_experiments.config.hydra import Composer
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.arithmetic import rung_step
from sft_experiments.runs.metrics import read_events
from sft_experiments.runs.plan_file import TO_THE_END, StepPlan, read_plan
from sft_experiments.runs.record import Failure, Record, Status, read_record
from sft_experiments.schema import SearchMethod, SweepConfig
from sft_experiments.sweep.queue import Queue
from sft_experiments.sweep.stopping_rules import RULES, Standings


def open_queue(trials: Iterable[Trial], to_run: list[Trial]) -> Queue:
    """The queue of a launch; ``to_run`` are those of its ``trials`` that have not ended for good."""
    settings = next(iter(trials)).config.sweep
    return Queue(to_run) if settings.early_stopping is None else RungQueue(settings, trials, to_run)


class RungQueue(Queue):
    """Trials that go from rung to rung. All it knows is in their folders, so that a killed launch loses nothing."""

    def __init__(self, settings: SweepConfig, trials: Iterable[Trial], to_run: list[Trial]) -> None:
        assert settings.early_stopping is not None
        super().__init__([_planned(trial) for trial in to_run if _is_new(trial)])
        self.waiting.clear()  # they are written, and wait for the rule
        self.stopped = False
        self.rule, self.rungs, self.factor = RULES[settings.early_stopping], settings.rungs, settings.reduction_factor
        # Grids come ordered by their axes. Early arrivals should be a sample of all: ids are hashes.
        self.trials = {trial.id: trial for trial in sorted(trials, key=lambda trial: trial.id)}
        ours = {trial.id for trial in to_run}
        self.completed = {key for key, trial in self.trials.items() if key not in ours and _is_completed(trial)}
        taking_part = [trial for trial in self.trials.values() if trial.id in ours | self.completed]
        self.scores = {trial.id: scores_of(trial, self.rungs) for trial in taking_part}
        self.training: set[str] = set()
        for trial in taking_part:
            if trial.id in ours and _is_on_its_way(trial, len(self.scores[trial.id]), self.rungs):
                self.waiting.append(self._sent(trial))

    def next(self) -> Optional[Trial]:
        if self.waiting or self.stopped:
            return super().next()
        now = Standings(self.scores, self.training, self.completed, len(self.rungs), self.factor)
        chosen = self.rule(now)
        return None if chosen is None else self._sent(self.trials[chosen])

    def _sent(self, trial: Trial) -> Trial:
        """A trial on its way to its next rung, as the worker will find it."""
        passed = len(self.scores[trial.id])
        trial = _planned(trial, stop_at=self.rungs[passed] if passed < len(self.rungs) else TO_THE_END)
        trial.write()
        self.training.add(trial.id)
        return trial

    def ended(self, trial: Trial, record: Record) -> None:
        self.training.discard(trial.id)
        self.trials[trial.id] = trial  # with its smaller batch, if it ran out of memory
        passed = len(self.scores[trial.id])
        self.scores[trial.id] = scores_of(trial, self.rungs)
        if record.status is Status.pruned and len(self.scores[trial.id]) == passed:
            message = f"{trial.config.objective.metric} is not a number at the rung where it was to be compared"
            record.fail(Status.failed, Failure("objective", message))
            record.write(trial.folder)
        if record.status is Status.completed:
            self.completed.add(trial.id)
        elif record.status is Status.pruned:
            self._note(trial)
        else:
            del self.scores[trial.id]

    def change(self, revised: Callable[[Trial], Trial]) -> None:
        super().change(revised)
        self.trials = {key: trial if key in self.training else revised(trial) for key, trial in self.trials.items()}

    def stop(self) -> None:
        super().stop()
        self.stopped = True

    def close(self) -> None:
        """Those that wait at a rung stay there."""
        if not self.stopped:
            for key in self.scores.keys() - self.completed:
                self._note(self.trials[key])

    def _note(self, trial: Trial) -> None:
        """Write into the record of a trial that waits where it is and how it compares."""
        rung, record = len(self.scores[trial.id]), read_record(trial.folder)
        event, metric = rung_events(trial, self.rungs)[-1], record.objective_metric
        rivals = sorted(scores[rung - 1] for scores in self.scores.values() if len(scores) >= rung)
        place = f"rung {rung} of {len(self.rungs)} ({event['tokens']:,} tokens)"
        rank = f"rank {rivals.index(self.scores[trial.id][-1]) + 1} of {len(rivals)}"
        older = [note for note in record.notes if not note.startswith("rung ")]
        record.notes = [*older, f"{place}: {metric} {event[metric]:.4f}, {rank}"]
        record.metrics = {"rung": rung, metric: event[metric], "tokens": event["tokens"]}
        record.wait_at_rung()
        record.write(trial.folder)


def tokens_saved(trials: list[Trial]) -> list[str]:
    """One line for the terminal on what early stopping was worth; none when nothing was stopped."""
    rule, records = trials[0].config.sweep.early_stopping, [read_record(trial.folder) for trial in trials]
    tokens = [int(record.metrics["tokens"]) for record in records if "tokens" in record.metrics]
    whole = [int(record.metrics["tokens"]) for record in records if record.status is Status.completed]
    if rule is None or not whole or len(whole) == len(tokens):
        return []
    times = max(whole) * len(tokens) / sum(tokens)
    return [
        f"sweep.early_stopping={rule.value}: {sum(tokens):,} tokens trained; all cells take {times:.2f} times as many"
    ]


def _planned(trial: Trial, **added: Any) -> Trial:
    """The trial with more in its plan, and with the steps that an earlier launch planned: they tell its rungs.

    The worker plans them again, but may be killed before.
    """
    return replace(trial, plan=replace(trial.plan, steps=steps_of(trial) or trial.plan.steps, **added))


def _is_new(trial: Trial) -> bool:
    """Never started, or to be tried once more after a failure."""
    earlier = trial.recorded()
    return earlier is None or earlier.status.is_failure


def _is_completed(trial: Trial) -> bool:
    earlier = trial.recorded()
    return earlier is not None and earlier.status is Status.completed


def _is_on_its_way(trial: Trial, passed: int, rungs: list[float]) -> bool:
    """Whether an earlier launch was stopped or killed while it trained this trial to a rung, or from one.

    One that was stopped at its rung itself waits there like the others.
    """
    stop_at = read_plan(trial.folder).stop_at
    if stop_at is None or read_record(trial.folder).status is Status.pruned:
        return False
    return stop_at == TO_THE_END or passed < sum(share <= stop_at for share in rungs)


def scores_of(trial: Trial, rungs: list[float]) -> list[float]:
    """The objective at each rung that the trial has passed, turned so that smaller is better."""
    sign = 1 if trial.record.objective_direction == "minimize" else -1
    return [sign * float(event[trial.config.objective.metric]) for event in rung_events(trial, rungs)]


def rung_events(trial: Trial, rungs: list[float]) -> list[dict[str, Any]]:
    """The evaluations at the rungs that the trial has passed. Raises ``RunFolderError`` for damaged files."""
    steps, metric = steps_of(trial), trial.config.objective.metric
    if steps is None:
        return []
    evaluated = {event["step"]: event for event in read_events(trial.folder.metrics) if metric in event}
    passed = []
    for share in rungs:
        step = rung_step(share, trial.config.train.eval_steps, steps.total_steps, steps.warmup_steps)
        if step not in evaluated or not math.isfinite(evaluated[step][metric]):
            break
        passed.append(evaluated[step])
    return passed


def steps_of(trial: Trial) -> Optional[StepPlan]:
    """What the worker has planned; None before it has."""
    return read_plan(trial.folder).steps if trial.folder.plan.is_file() else None


POOL = "PoolLauncher"


def check_early_stopping(composer: Composer, trials: Iterable[Trial] = ()) -> None:
    """Raise ``ConfigError`` for rules that make no sense, and for trials that would not be compared at equal tokens."""
    master = composer.master
    if master.sweep.early_stopping is None:
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
