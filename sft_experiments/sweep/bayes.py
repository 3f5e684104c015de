"""Bayesian search: Optuna proposes points from what earlier ones scored. Its study lies in the sweep's folder.

A killed or stopped search goes on: points that were being trained are trained to their end first, and each batch of
proposals is seeded by the number of points before it, so that the same points follow.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from sft_experiments.errors import ConfigError, MissingDependencyError
from sft_experiments.run.record import Status, read_record
from sft_experiments.run.trial import Trial
from sft_experiments.sweep.check_first import check_first
from sft_experiments.sweep.disk import check_disk
from sft_experiments.sweep.ledger import Sweep
from sft_experiments.sweep.planning import pin_models, plan_cells
from sft_experiments.sweep.space import Dimension, Interval, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.db"
STARTUP_TRIALS = 5  # points at random before the model of the objective is of any use
POINT = "point"  # attribute of a study's trial: the values as they were written into the overrides


class Search:
    """The study of one sweep, and the trials that its points stand for."""

    def __init__(self, context: HydraContext, master: DictConfig, plans: Sweep, space: Space) -> None:
        if space.seeds:
            raise ConfigError(
                f"sweep.num_seeds={master.sweep.num_seeds}: Bayesian search trains each point once; confirm its"
                " winner with sweep=seeds"
            )
        self.context, self.master, self.plans, self.space = context, master, plans, space
        self.trials: dict[str, Trial] = {}  # of all points, by id
        self.num_trials = int(master.sweep.num_trials)
        self.study = open_study(plans.folder, plans.name, master.objective.direction.name)

    def run(self, launcher: Launcher) -> list[JobReturn]:
        """Batch after batch until the study has ``sweep.num_trials`` points, those of earlier launches included."""
        returns: list[JobReturn] = []
        self._remember_earlier_points()
        while batch := self._next_batch():
            planned = {number: self._plan(point) for number, point in batch.items()}
            self._admit([trial for _, trial in planned.values()])
            self.plans.cells = {trial.id: trial.record.axes for trial in self.trials.values()}
            self.plans.write()
            overrides = dict.fromkeys(tuple(one) for one, _ in planned.values())  # two proposals may be one point
            returns += launcher.launch([list(one) for one in overrides], len(returns))
            for number, (_, trial) in planned.items():
                self._tell(number, trial)
        return returns

    def _remember_earlier_points(self) -> None:
        """Finished points belong to the account of the sweep, whichever launch trained them."""
        for one in self.study.get_trials(deepcopy=False):
            if one.state.is_finished():
                _, trial = self._plan(self._point(one))
                self.trials[trial.id] = trial

    def _admit(self, trials: list[Trial]) -> None:
        """What every sweep does before it spends anything."""
        pin_models(trials)
        check_disk(self.plans.folder, trials, self.plans.concurrent_trials)
        if len(self.study.get_trials(deepcopy=False)) == len(trials):
            check_first(self.master, trials)
        self.trials |= {trial.id: trial for trial in trials}

    def _plan(self, point: dict[str, str]) -> tuple[list[str], Trial]:
        ((overrides, trial),) = plan_cells(self.context, self.master, self.plans, self.space.cells(point)).items()
        return list(overrides), trial

    def _next_batch(self) -> dict[int, dict[str, str]]:
        """Points by their number in the study: those that an earlier launch did not finish, else new ones."""
        from optuna.trial import TrialState

        known = self.study.get_trials(deepcopy=False)
        open_ = {one.number: self._point(one) for one in known if one.state is TrialState.RUNNING}
        if open_:
            return open_
        self.study.sampler = sampler(int(self.master.sweep.search_seed) + len(known))
        room = min(self.plans.concurrent_trials, self.num_trials - len(known))
        return dict(self._ask() for _ in range(room))

    def _ask(self) -> tuple[int, dict[str, str]]:
        distributions = {key: distribution(dimension) for key, dimension in self.space.dimensions.items()}
        try:
            asked = self.study.ask(distributions)
        except ValueError as error:  # Optuna allows an interval to change, but not the values of a list
            raise ConfigError(f"{self.plans.folder / STUDY_FILE} was made for another space: {error}") from None
        point = self._texts(asked.params)
        asked.set_user_attr(POINT, point)
        return asked.number, point

    def _point(self, one: "FrozenTrial") -> dict[str, str]:
        """As written into the overrides; a launch may have been killed before it noted that."""
        return one.user_attrs.get(POINT) or self._texts(one.params)

    def _texts(self, values: dict[str, Any]) -> dict[str, str]:
        dimensions = self.space.dimensions
        return {
            key: dimension.text(values[key]) if isinstance(dimension, Interval) else str(values[key])
            for key, dimension in dimensions.items()
        }

    def _tell(self, number: int, trial: Trial) -> None:
        """The study learns the record: a score, a place to avoid, or that nothing was learned."""
        from optuna.trial import TrialState

        record = read_record(trial.folder)
        if record.status is Status.completed and record.objective is not None:
            self.study.tell(number, record.objective)
        elif record.status in {Status.diverged, Status.oom, Status.pruned}:
            self.study.tell(number, state=TrialState.PRUNED)  # counts as worse than every score
        else:
            self.study.tell(number, state=TrialState.FAIL)


def open_study(folder: Path, name: str, direction: str) -> "Study":
    """The study in the sweep's folder, new or as it was left. Raises ``MissingDependencyError`` without Optuna."""
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError("sweep=optuna needs optuna: pip install 'sft-experiments[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(folder / STUDY_FILE).resolve()}"
    return optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)


def sampler(seed: int) -> Any:
    """Tree-structured Parzen estimators over all dimensions together; points in training count as bad meanwhile."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)


def distribution(dimension: Dimension) -> "BaseDistribution":
    """A dimension in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(dimension, Interval):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
