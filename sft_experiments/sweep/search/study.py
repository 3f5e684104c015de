"""The Optuna study of a search, one sqlite file in the sweep's folder: what was proposed, and what came of it.

A point is thought out on a copy in memory and written in one transaction, so that the study never holds half a point,
whenever its process is killed. Each proposal is seeded by its number: the same study is followed by the same point.
"""

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as AskedTrial

from sft_experiments.errors import ConfigError
from sft_experiments.results.curves import thinned
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import read_events
from sft_experiments.runs.record import Status, read_record
from sft_experiments.sweep.space import Dimension, Interval, drawn_point

Point = dict[str, str]  # by key, the values as they are written in overrides
STUDY_FILE = "study.db"
STARTUP_TRIALS = 5  # points at random, as a random search draws them, before a model of the objective is of any use
BATCH = "batch"  # attribute of a study's trial: the number of the first one that was proposed with it
MOST_REPORTED = 50  # evaluations of a trial that go into the study: each one is a transaction


def open_study(folder: Path, name: str, direction: str, metric: str) -> Study:
    """The study in the sweep's folder, new or as it was left."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(folder / STUDY_FILE).resolve()}"
    names = optuna.get_all_study_names(storage)  # at most one, under the name that the sweep then had
    study = optuna.create_study(
        study_name=(names or [name])[0], storage=storage, direction=direction, load_if_exists=True
    )
    with warnings.catch_warnings(action="ignore"):  # "experimental": for the dashboard's axis, which can do without
        study.set_metric_names([metric])
    return study


def look_at_trials(folder: Path) -> list[FrozenTrial]:
    """The trials of the study in a folder, none when there is no study yet. Writes nothing, not even a lock."""
    if not (folder / STUDY_FILE).is_file():
        return []
    url = f"sqlite:///file:{(folder / STUDY_FILE).resolve()}?mode=ro&uri=true"
    storage = optuna.storages.RDBStorage(url, skip_table_creation=True, skip_compatibility_check=True)
    names = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=names[0], storage=storage).get_trials() if names else []


def point_of(one: FrozenTrial, dimensions: Mapping[str, Dimension]) -> Point:
    """A trial's point. Raises ``ConfigError`` when the study was made for other dimensions."""
    try:  # Optuna allows an interval to change, but not the values of a list
        if set(one.params) != set(dimensions):
            raise ValueError(f"it searches {', '.join(sorted(one.params))}")
        for key, dimension in dimensions.items():
            check_distribution_compatibility(one.distributions[key], distribution(dimension))
    except ValueError as error:
        raise ConfigError(
            f"{STUDY_FILE} was made for another space: {error}; name another folder (hydra.sweep.dir=...)"
        ) from None
    return texts(one.params, dimensions)


def texts(values: Mapping[str, Any], dimensions: Mapping[str, Dimension]) -> Point:
    """Optuna's values as they are written in overrides."""
    return {
        key: dimension.text(values[key]) if isinstance(dimension, Interval) else str(values[key])
        for key, dimension in dimensions.items()
    }


def propose(study: Study, dimensions: Mapping[str, Dimension], seed: int, batch: int) -> None:
    """Add one point to the study. ``seed``: of the search; ``batch``: the number of the first point of its batch."""
    known = study.get_trials(deepcopy=False)
    distributions = {key: distribution(dimension) for key, dimension in dimensions.items()}
    if len(known) < STARTUP_TRIALS:
        point = drawn_point(dimensions, seed, len(known))
    else:  # neighbouring seeds of numpy begin alike, so that they are spread out first
        spread = random.Random(f"{seed} {len(known)}").getrandbits(32)
        copy = optuna.create_study(direction=study.direction, sampler=sampler(spread))
        copy.add_trials(known)
        point = texts(copy.ask(distributions).params, dimensions)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={key: _value(text, dimensions[key]) for key, text in point.items()},
            distributions=distributions,
            user_attrs={BATCH: batch},
        )
    )


def tell(study: Study, one: FrozenTrial, folder: RunFolder) -> None:
    """The study learns the record: a score, a place to avoid, or nothing; and the curve, for those who look at it."""
    record = read_record(folder)
    asked = AskedTrial(study, one._trial_id)
    for step, value in curve(folder, record.objective_metric).items():
        if step not in one.intermediate_values:  # a launch may have been killed on the way
            asked.report(value, step)
    asked.set_user_attr("run", folder.path.name)
    asked.set_user_attr("status", record.status.value)
    if record.status is Status.completed and record.objective is not None:
        study.tell(one.number, record.objective)
    elif record.status in {Status.diverged, Status.oom, Status.pruned}:
        study.tell(one.number, state=TrialState.PRUNED)  # counts as worse than every score
    else:
        study.tell(one.number, state=TrialState.FAIL)


def curve(folder: RunFolder, metric: str) -> dict[int, float]:
    """The objective by step, at its evaluations."""
    measured = [event for event in read_events(folder.metrics) if metric in event]
    return {int(event["step"]): event[metric] for event in thinned(measured, MOST_REPORTED, [metric])}


def sampler(seed: int) -> Any:
    """Tree-structured Parzen estimators over all dimensions together; points in training count as bad meanwhile."""
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's words."""
    if not isinstance(dimension, Interval):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _value(text: str, dimension: Dimension) -> Any:
    """A text in the type that the distribution has."""
    if not isinstance(dimension, Interval):
        return text
    return int(text) if dimension.whole else float(text)
