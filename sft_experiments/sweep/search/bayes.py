"""Bayesian search: Optuna proposes points from what earlier ones scored, as many at a time as trials run at once.

A killed or stopped search goes on with the batch that it was in: the study knows its points, their records say how far
they are, and the study learns from them in the order of their numbers, whichever ended first. So the points that follow
are those that would have followed.
"""

from typing import Any

from optuna.trial import FrozenTrial

from sft_experiments.launch.trial import Trial
from sft_experiments.runs.record import read_record
from sft_experiments.sweep.admission import check_disk, check_first, pin_models
from sft_experiments.sweep.planning import Launch, Planner, SearchAhead
from sft_experiments.sweep.search.study import (
    BATCH,
    Point,
    look_at_trials,
    open_study,
    point_of,
    propose,
    tell,
)
from sft_experiments.sweep.space import Space, drawn_cells
from sft_experiments.sweep.sweep_view import show_points


def look_ahead(planner: Planner, space: Space) -> SearchAhead:
    """How far the search is, and what may come. Writes nothing."""
    sweep, master = planner.sweep, planner.composer.master
    points = [point_of(one, space.dimensions) for one in look_at_trials(sweep.folder)]
    proposed = [trial for point in points for trial in planner.plan(space.cells(point)).values()]
    examples = planner.plan(list(drawn_cells(space, master)))
    return SearchAhead(sweep, space, int(master.sweep.num_trials), proposed, list(examples.values()))


class Search:
    """The study of one sweep, and the trials that its points stand for."""

    def __init__(self, planner: Planner, space: Space) -> None:
        self.planner, self.space = planner, space
        self.sweep, self.master = planner.sweep, planner.composer.master
        self.trials: dict[str, Trial] = {}  # of all points, by id
        self.returns: list[Any] = []
        self.num_trials = int(self.master.sweep.num_trials)
        objective = self.master.objective
        self.study = open_study(self.sweep.folder, self.sweep.name, objective.direction.name, objective.metric)

    def run(self, launch: Launch) -> list[Any]:
        """Batch after batch until the study has ``sweep.num_trials`` points, those of earlier launches included."""
        self._take_up_earlier_points(launch)
        while batch := self._next_batch():
            show_points(batch[0].number + 1, batch[-1].number + 1, self.num_trials)
            trials = self._train(launch, [self._point(one) for one in batch])
            records = [read_record(trial.folder) for trial in trials]
            for one, trial in zip(batch, trials, strict=True):
                if not trial.needs_running(retry_failed=False):  # else sweep.fail_fast has kept it waiting
                    tell(self.study, one, trial.folder)
            if self.master.sweep.fail_fast and any(record.status.is_failure for record in records):
                break
        return self.returns

    def _take_up_earlier_points(self, launch: Launch) -> None:
        """What earlier launches trained belongs to the account of the sweep.

        ``rerun``, ``sweep.retry_failed`` and deleted folders train again; the study keeps what it was told.
        """
        points = [self._point(one) for one in self._known() if one.state.is_finished()]
        trials = [self._plan(point)[1] for point in points]
        self.trials |= {trial.id: trial for trial in trials}
        retry = bool(self.master.sweep.retry_failed)
        again = [point for point, trial in zip(points, trials, strict=True) if trial.needs_running(retry)]
        if again:
            self._train(launch, again)

    def _next_batch(self) -> list[FrozenTrial]:
        """The batch that an earlier launch was in, completed if that was killed while it proposed, else a new one."""
        known = self._known()
        open_ = [one for one in known if not one.state.is_finished()]
        first = int(open_[0].user_attrs[BATCH]) if open_ else len(known)
        if len(open_) == len(known) - first:  # none of the batch has been told: all of it proposed alike
            size = min(self.sweep.concurrent_trials, self.num_trials - first)
            for _ in range(size - len(open_)):
                propose(self.study, self.space.dimensions, int(self.master.sweep.search_seed), first)
        return [one for one in self._known() if not one.state.is_finished()]

    def _train(self, launch: Launch, points: list[Point]) -> list[Trial]:
        """Launch what the points stand for; two of them may be one trial."""
        planned = [self._plan(point) for point in points]
        trials = [trial for _, trial in planned]
        self._admit(trials)
        overrides = list(dict.fromkeys(tuple(one) for one, _ in planned))
        self.returns += launch([list(one) for one in overrides], len(self.returns))
        return trials

    def _admit(self, trials: list[Trial]) -> None:
        """What every sweep does before it spends anything."""
        is_first = not self.trials
        pin_models(trials)
        check_disk(self.sweep.folder, trials, self.sweep.concurrent_trials)
        if is_first:
            check_first(self.planner.composer, trials)
        self.trials |= {trial.id: trial for trial in trials}
        self.sweep.cells = {trial.id: trial.record.axes for trial in self.trials.values()}
        self.sweep.write()

    def _plan(self, point: Point) -> tuple[list[str], Trial]:
        ((overrides, trial),) = self.planner.plan(self.space.cells(point)).items()
        return list(overrides), trial

    def _point(self, one: FrozenTrial) -> Point:
        return point_of(one, self.space.dimensions)

    def _known(self) -> list[FrozenTrial]:
        return list(self.study.get_trials(deepcopy=False))
