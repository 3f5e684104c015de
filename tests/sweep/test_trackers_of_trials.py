"""Trials in their trackers: one W&B run and one TensorBoard run each, in how many pieces ever it was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.metrics import read_events
from sft_experiments.runs.record import Record, Status, read_record
from tests.monitor.trackers.wandb_files import history, records, run_folders, summary
from tests.sweep.conftest import QUIET_RATES, Done

pytestmark = pytest.mark.slow

BOTH = "logger.trackers=[tensorboard,wandb]"
SLOWLY = {"at": "every step", "do": "linger"}  # W&B takes a second to start: let each attempt see it


def trials_of(done: Done) -> list[tuple[RunFolder, Record]]:
    return [(folder, read_record(folder)) for folder in find_run_folders(done.folder)]


def first_record(run_folder: Path) -> dict[str, Any]:
    return next(record["run"] for record in records(run_folder) if record["type"] == "run")


def tensorboard_steps(folder: RunFolder, tag: str) -> list[int]:
    accumulator = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


def assert_one_run_in_every_tracker(folder: RunFolder, record: Record, attempts: int) -> None:
    """One W&B folder to upload, under the trial's id, and one in TensorBoard, with each step once, in order."""
    assert record.attempts == attempts
    (run,) = run_folders(folder.path)
    earlier = list((folder.path / "wandb/earlier").iterdir())
    assert len(earlier) == attempts - 1
    assert {summary(piece)["run_id"] for piece in (run, *earlier)} == {record.trial_id}
    trained = [event["step"] for event in read_events(folder.metrics) if "train/loss" in event]
    rows = history(run)
    assert [row["_step"] for row in rows if "train/loss" in row] == trained
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    assert any(name.startswith("samples") for row in rows if row["_step"] <= trained[2] for name in row)
    assert tensorboard_steps(folder, "train/loss") == trained
    assert len({file.parent for file in folder.path.rglob("events.out.tfevents.*")} - {folder.tensorboard}) <= 1


def test_six_trials_two_at_a_time_are_six_runs_with_their_own_settings(sweep: Callable[..., Done]) -> None:
    rates = "train.learning_rate=0.001,0.002,0.003"
    done = sweep(BOTH, rates, "train.effective_batch_size=8,16", "sweep.concurrent_trials=2", "train.max_steps=3")
    assert done.code == 0, done.shown
    seen = set()
    for folder, record in trials_of(done):
        (run,) = run_folders(folder.path)
        content, written = summary(run), first_record(run)
        config = content["config"]
        seen.add((config["train.learning_rate"], config["train.effective_batch_size"]))
        assert record.axes == {key: config[key] for key in ("train.learning_rate", "train.effective_batch_size")}
        assert (content["run_id"], content["name"]) == (record.trial_id, record.label)
        assert (written["run_group"], written["job_type"]) == (done.folder.name, "train")
    assert seen == {(rate, batch) for rate in (0.001, 0.002, 0.003) for batch in (8, 16)}
    everything = [path for path in done.home.rglob("offline-run-*") if path.is_dir()]
    assert len(everything) == 6 + 1  # and the ranking
    assert "7 offline runs" in done.shown


def test_a_killed_trial_that_goes_on_is_one_run(sweep: Callable[..., Done], plant: Callable[..., None]) -> None:
    plant({"at": 5, "do": "be_killed", "once": True}, SLOWLY)
    done = sweep(BOTH, "train.learning_rate=0.002", "train.logging_steps=1")
    assert done.code == 0, done.shown
    ((folder, record),) = trials_of(done)
    assert_one_run_in_every_tracker(folder, record, attempts=2)


def test_a_trial_that_waited_at_a_rung_and_was_pruned_is_one_run_when_it_goes_on(
    sweep: Callable[..., Done], plant: Callable[..., None]
) -> None:
    plant(SLOWLY)
    settings = [BOTH, QUIET_RATES, "train.logging_steps=1"]
    halved = sweep(*settings, "sweep.early_stopping=halving", "sweep.rungs=[0.5]")
    assert halved.code == 0, halved.shown
    attempts = {record.status: record.attempts for _, record in trials_of(halved)}
    assert attempts == {Status.completed: 2, Status.pruned: 1}
    done = sweep(*settings)
    assert done.code == 0, done.shown
    for folder, record in trials_of(done):
        assert record.status is Status.completed
        assert_one_run_in_every_tracker(folder, record, attempts=2)
