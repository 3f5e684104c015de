"""Bayesian search in real sweeps: its trials are counted over launches, its study can be read by others."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.trial import TrialState

from sft_experiments.runs.metrics import read_events
from sft_experiments.runs.record import Status
from sft_experiments.sweep.search.study import STUDY_FILE
from tests.sweep.conftest import Done

pytestmark = pytest.mark.slow

SPACE = ["sweep=optuna", "train.learning_rate=tag(log,interval(1e-4,1e-2))", "train.max_steps=2"]


def study_of(done: Done) -> optuna.Study:
    storage = f"sqlite:///{done.folder / STUDY_FILE}"
    return optuna.load_study(study_name=None, storage=storage)


@pytest.fixture(scope="session")
def searched(sweep_in: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A search of seven trials that nothing happens to."""
    done = sweep_in(tmp_path_factory.mktemp("searched"), *SPACE, "sweep.num_trials=7")
    assert done.code == 0, done.shown
    return done


def test_the_study_holds_the_score_of_every_trial(searched: Done) -> None:
    told = {one.params["train.learning_rate"]: one.value for one in study_of(searched).get_trials()}
    recorded = {rate: record.objective for rate, record in searched.by_rate().items()}
    assert told == recorded
    assert len(told) == 7
    assert "Bayesian search, 7 trials in all" in searched.shown


def test_the_study_has_the_curve_and_the_folder_of_each_trial(searched: Done) -> None:
    study = study_of(searched)
    assert study.metric_names == ["eval/loss"]
    for one in study.get_trials():
        (rate,) = one.params.values()
        events = read_events(searched.trial(rate).metrics)
        assert one.intermediate_values == {
            event["step"]: event["eval/loss"] for event in events if "eval/loss" in event
        }
        assert one.user_attrs["run"] == searched.trial(rate).path.name
        assert one.user_attrs["status"] == "completed"


def test_the_dashboard_shows_what_the_records_say(searched: Done) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="pip install optuna-dashboard")
    served = dashboard.wsgi(f"sqlite:///{searched.folder / STUDY_FILE}")
    environ: dict[str, Any] = {"PATH_INFO": "/api/studies/1"}
    setup_testing_defaults(environ)
    shown = json.loads(b"".join(served(environ, lambda status, headers, error=None: None)))
    assert shown["directions"] == ["minimize"]
    assert shown["objective_names"] == ["eval/loss"]
    records = searched.by_rate()
    for trial in shown["trials"]:
        (rate,) = trial["params"]
        record = records[float(rate["param_external_value"])]
        assert (rate["name"], trial["state"]) == ("train.learning_rate", "Complete")
        assert trial["values"] == [record.objective]
        assert trial["intermediate_values"][-1]["value"] == record.objective
    assert len(shown["trials"]) == len(records)


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
    retried = sweep(*SPACE, "sweep.num_trials=3", "sweep.retry_failed=true", "sweep.concurrent_trials=1")
    assert retried.code == 0, retried.shown
    assert [record.status for record in retried.records()] == [Status.completed] * 3
    assert sorted(record.attempts for record in retried.records()) == [1, 1, 2]
    assert len(study_of(retried).get_trials()) == 3


def test_fail_fast_starts_no_further_trial_and_a_relaunch_goes_on(
    sweep: Callable[..., Done], plant: Callable[..., None]
) -> None:
    plant({"at": 1, "do": "fail", "once": True})
    settings = [*SPACE, "sweep.num_trials=3", "sweep.concurrent_trials=1", "sweep.fail_fast=true"]
    first = sweep(*settings)
    assert first.code == 1
    assert [record.status for record in first.records()] == [Status.failed]
    again = sweep(*settings)
    assert len(again.records()) == 3
    assert [one.state for one in study_of(again).get_trials()] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]


def test_a_wrong_value_anywhere_in_the_space_is_refused_before_anything_is_written(sweep: Callable[..., Done]) -> None:
    done = sweep(*SPACE, "train.effective_batch_size=8,0")
    assert done.code == 2
    assert "train.effective_batch_size=0" in done.shown
    assert not (done.home / "outputs").exists()


def test_without_optuna_the_error_names_the_extra(
    sweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("sft_experiments.sweep.search")]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported them
    done = sweep(*SPACE)
    assert done.code == 5
    assert "pip install 'sft-experiments[optuna]'" in done.shown


def test_a_changed_list_of_values_is_refused_with_the_studys_name(sweep: Callable[..., Done]) -> None:
    small = ["sweep=optuna", "train.max_steps=1", "sweep.num_trials=1", "train.learning_rate=1e-3,2e-3"]
    assert sweep(*small).code == 0
    changed = sweep(*small[:3], "train.learning_rate=1e-3,3e-3", "sweep.num_trials=2")
    assert changed.code == 2
    assert "was made for another space" in changed.shown


def test_a_dimension_that_becomes_fixed_is_another_space(sweep: Callable[..., Done]) -> None:
    small = ["sweep=optuna", "train.max_steps=1", "sweep.num_trials=1", "train.effective_batch_size=8,16"]
    assert sweep(*small).code == 0
    fixed = sweep(*small[:2], "sweep.num_trials=2", "train.effective_batch_size=8")
    assert fixed.code == 2
    assert "was made for another space: it searches train.effective_batch_size, train.learning_rate" in fixed.shown
