"""Bayesian search in real sweeps: seeded, its trials counted over launches, resumed where it was killed."""

import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from sft_experiments.run.record import Status
from sft_experiments.sweep import bayes
from tests.sweep.conftest import Done

pytestmark = pytest.mark.slow

SPACE = ["sweep=optuna", "train.learning_rate=tag(log,interval(1e-4,1e-2))", "train.max_steps=2"]


def study_of(done: Done) -> optuna.Study:
    storage = f"sqlite:///{done.folder / bayes.STUDY_FILE}"
    return optuna.load_study(study_name=None, storage=storage)


def rates(done: Done) -> list[float]:
    return [one.params["train.learning_rate"] for one in study_of(done).get_trials()]


@pytest.fixture(scope="session")
def searched(sweep_in: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A search of seven trials that nothing happens to."""
    done = sweep_in(tmp_path_factory.mktemp("searched"), *SPACE, "sweep.num_trials=7")
    assert done.code == 0, done.shown
    return done


def test_the_study_holds_the_score_of_every_trial(searched: Done) -> None:
    told = {f"{one.params['train.learning_rate']:.3g}": one.value for one in study_of(searched).get_trials()}
    recorded = {f"{rate:.3g}": record.objective for rate, record in searched.by_rate().items()}
    assert told == recorded
    assert len(told) == 7
    assert "Bayesian search, 7 trials in all" in searched.shown


def test_a_stopped_search_goes_on_with_the_same_points(
    sweep: Callable[..., Done], searched: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = bayes.Search._tell

    def tell_until_the_end(self: bayes.Search, number: int, trial: object) -> None:
        if number == 5:
            raise KeyboardInterrupt  # the process ends with one trial of the third batch told, one not
        tell(self, number, trial)  # type: ignore[arg-type]

    monkeypatch.setattr(bayes.Search, "_tell", tell_until_the_end)
    stopped = sweep(*SPACE, "sweep.num_trials=7")
    assert stopped.code == 130
    assert study_of(stopped).get_trials()[5].state is TrialState.RUNNING
    monkeypatch.undo()
    done = sweep(*SPACE, "sweep.num_trials=7")
    assert done.code == 0, done.shown
    assert rates(done) == rates(searched)
    assert {record.attempts for record in done.records()} == {1}
    assert [one.value for one in study_of(done).get_trials()] == [one.value for one in study_of(searched).get_trials()]


def test_the_number_of_trials_is_a_total_and_failures_count(
    sweep: Callable[..., Done], plant: Callable[..., None]
) -> None:
    plant({"at": 1, "do": "fail", "once": True})
    first = sweep(*SPACE, "sweep.num_trials=2", "sweep.concurrent_trials=1")
    assert first.code == 1
    assert [one.state for one in study_of(first).get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    again = sweep(*SPACE, "sweep.num_trials=2", "sweep.concurrent_trials=1")
    assert again.code == 1
    assert len(study_of(again).get_trials()) == 2
    more = sweep(*SPACE, "sweep.num_trials=3", "sweep.concurrent_trials=1")
    assert "1 of 3 trials did not complete" in more.shown
    assert [record.status for record in more.records()].count(Status.completed) == 2


def test_without_optuna_the_error_names_the_extra(
    sweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = sweep(*SPACE)
    assert done.code == 5
    assert "pip install 'sft-experiments[optuna]'" in done.shown


def test_a_changed_list_of_values_is_refused_with_the_studys_name(sweep: Callable[..., Done]) -> None:
    small = ["sweep=optuna", "train.max_steps=1", "sweep.num_trials=1", "train.learning_rate=1e-3,2e-3"]
    assert sweep(*small).code == 0
    changed = sweep(*small[:3], "train.learning_rate=1e-3,3e-3", "sweep.num_trials=2")
    assert changed.code == 2
    assert "was made for another space" in changed.shown
