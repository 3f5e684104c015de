"""Early stopping in real sweeps: fewer tokens, the same winner, and nothing lost of what was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.arithmetic import rung_step
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.rank import compare_runs
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.record import Record, Status, read_record
from sft_experiments.sweep.board import LiveBoard
from sft_experiments.sweep.planning import plan_sweep
from sft_experiments.sweep.rungs import RungQueue
from tests.sweep.conftest import QUIET_RATES, TINY, Done

ONE_RUNG = ["sweep.rungs=[0.5]", "sweep.reduction_factor=3"]  # the looks are after 1, 2, 4, 5 and 6 steps


def last_step(done: Done, rate: float) -> int:
    return int(json.loads(done.trial(rate).metrics.read_text().splitlines()[-1])["step"])


def winner_of(done: Done) -> float:
    (winner,) = [rate for rate, record in done.by_rate().items() if record.status is Status.completed]
    return winner


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["asha", "halving"])
def test_the_winner_is_the_grids_and_the_others_wait_at_the_rung_with_a_checkpoint(
    sweep: Callable[..., Done], quiet: Done, rule: str
) -> None:
    done = sweep(QUIET_RATES, f"sweep.early_stopping={rule}", *ONE_RUNG)
    assert done.code == 0, done.shown
    best = min(quiet.by_rate(), key=lambda rate: quiet.by_rate()[rate].objective or 9.0)
    assert winner_of(done) == best
    assert done.by_rate()[best].objective == quiet.by_rate()[best].objective
    assert done.weights(best) == quiet.weights(best)
    for rate, record in done.by_rate().items():
        if rate != best:
            assert record.status is Status.pruned
            assert last_step(done, rate) == 4
            assert (done.trial(rate).checkpoints / "checkpoint-4" / "complete.json").is_file()
            assert record.metrics["rung"] == 1
            assert record.notes[-1].startswith("rung 1 of 1 (")
    assert "rank 3 of 3" in " ".join(done.shown.split())
    assert "all cells take 1." in done.shown
    status = LiveBoard(find_run_folders(done.folder), Console(width=80)).table()
    assert sorted(map(str, status.columns[-1].cells)) == ["", "1", "1"]
    waiting = compare_runs(collect_runs([done.folder])).unranked
    assert [run.record.notes[-1][-len("rank 2 of 3") :] for run in waiting] == ["rank 2 of 3", "rank 3 of 3"]

    again = sweep(QUIET_RATES, f"sweep.early_stopping={rule}", *ONE_RUNG)  # nothing is left to do
    assert again.code == 0
    assert "started" not in again.shown
    assert [record.status for record in again.records()] == [record.status for record in done.records()]

    promoted = sweep(QUIET_RATES)  # the same grid, and all train to the end
    assert promoted.code == 0, promoted.shown
    for rate, record in quiet.by_rate().items():
        assert promoted.by_rate()[rate].objective == record.objective
        assert promoted.weights(rate) == quiet.weights(rate)


@pytest.mark.slow
def test_a_stopped_trial_is_promoted_from_its_checkpoint_when_the_sweep_is_extended(
    sweep: Callable[..., Done], quiet: Done
) -> None:
    asha = ["sweep.early_stopping=asha", *ONE_RUNG]
    first = sweep(QUIET_RATES, *asha)
    losses = {rate: first.by_rate()[rate].metrics["eval/loss"] for rate in (0.001, 0.002, 0.003)}
    second = sorted(losses, key=losses.__getitem__)[1]
    assert first.by_rate()[second].status is Status.pruned
    done = sweep(f"{QUIET_RATES},0.0001,0.0002,0.0003", *asha)  # slow ones: a third of six are two
    assert done.code == 0, done.shown
    record = done.by_rate()[second]
    assert (record.status, record.attempts) == (Status.completed, 2)
    assert "goes on from step 4" in done.trial(second).log.read_text()
    assert record.objective == quiet.by_rate()[second].objective
    assert done.weights(second) == quiet.weights(second)


@pytest.mark.slow
def test_the_median_rule_stops_the_worse_half_at_each_rung(sweep: Callable[..., Done], quiet: Done) -> None:
    done = sweep(QUIET_RATES, "sweep.early_stopping=median", "sweep.rungs=[0.5,0.8]")
    assert done.code == 0, done.shown
    assert sorted(last_step(done, rate) for rate in done.by_rate()) in ([4, 4, 6], [4, 6, 6])  # of two, both go on
    best = min(quiet.by_rate(), key=lambda rate: quiet.by_rate()[rate].objective or 9.0)
    assert done.weights(best) == quiet.weights(best)


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_with_what_was_on_its_way(
    sweep: Callable[..., Done], quiet: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = RungQueue.ended

    def interrupted(queue: RungQueue, trial: Trial, record: Record) -> None:
        ended(queue, trial, record)
        signal.raise_signal(signal.SIGINT)

    arguments = [QUIET_RATES, "sweep.early_stopping=asha", *ONE_RUNG, "sweep.concurrent_trials=1"]
    monkeypatch.setattr(RungQueue, "ended", interrupted)
    for arrived in (1, 2, 3):  # at the rung; only the fourth launch trains the best one to the end
        done = sweep(*arguments)
        assert done.code == 130
        assert [record.status for record in done.records()].count(Status.pruned) == arrived
    monkeypatch.undo()
    done = sweep(*arguments)
    assert done.code == 0, done.shown
    best = min(quiet.by_rate(), key=lambda rate: quiet.by_rate()[rate].objective or 9.0)
    assert {rate: record.attempts for rate, record in done.by_rate().items()} == {
        rate: 2 if rate == best else 1 for rate in quiet.by_rate()
    }
    assert done.weights(best) == quiet.weights(best)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_to_the_same_winner(
    sweep: Callable[..., Done],
    quiet: Done,
    tmp_path: Path,
    faulty_environment: dict[str, str],
    plant: Callable[..., None],
) -> None:
    plant({"at": "every step", "do": "linger"})
    arguments = [QUIET_RATES, "sweep.early_stopping=asha", *ONE_RUNG]
    command = [sys.executable, "-m", "sft_experiments", "train", "-m", *TINY, *arguments]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launched = subprocess.Popen(command, cwd=tmp_path, env=faulty_environment, start_new_session=True, **silent)  # type: ignore[call-overload]
    deadline = time.monotonic() + 240
    while not any('"step": 5' in folder.metrics.read_text() for folder in started(tmp_path)):  # a promoted one trains
        assert time.monotonic() < deadline, launched.poll()
        time.sleep(0.02)
    os.kill(launched.pid, signal.SIGKILL)
    launched.wait()
    plant()
    done = sweep(*arguments)
    assert done.code == 0, done.shown
    best = min(quiet.by_rate(), key=lambda rate: quiet.by_rate()[rate].objective or 9.0)
    assert winner_of(done) == best
    assert done.weights(best) == quiet.weights(best)
    assert {record.status for record in done.records()} == {Status.completed, Status.pruned}


def started(home: Path) -> list[RunFolder]:
    return [folder for folder in find_run_folders(home) if folder.metrics.is_file()]


@pytest.mark.slow
def test_a_failed_trial_takes_no_place_at_a_rung(sweep: Callable[..., Done], plant: Callable[..., None]) -> None:
    plant({"in": {"learning_rate": 0.003}, "at": 1, "do": "fail"})
    done = sweep(QUIET_RATES, "sweep.early_stopping=asha", *ONE_RUNG)
    assert done.code == 1
    assert sorted(record.status.value for record in done.records()) == ["completed", "failed", "pruned"]


@pytest.mark.slow
def test_one_that_failed_beyond_a_rung_trains_to_the_end_when_it_is_retried(
    sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done
) -> None:
    best = min(quiet.by_rate(), key=lambda rate: quiet.by_rate()[rate].objective or 9.0)
    plant({"in": {"learning_rate": best}, "at": 5, "do": "fail"})
    arguments = [QUIET_RATES, "sweep.early_stopping=asha", *ONE_RUNG]
    failed = sweep(*arguments)
    assert failed.by_rate()[best].status is Status.failed
    assert "sweep.retry_failed=true runs them again" in " ".join(failed.shown.split())
    plant()
    done = sweep(*arguments, "sweep.retry_failed=true")
    assert done.code == 0, done.shown
    assert last_step(done, best) == 6
    assert done.by_rate()[best].objective == quiet.by_rate()[best].objective
    assert done.weights(best) == quiet.weights(best)


@pytest.mark.slow
def test_one_that_was_stopped_at_its_rung_waits_for_the_rule(sweep: Callable[..., Done]) -> None:
    arguments = [QUIET_RATES, "sweep.early_stopping=asha", *ONE_RUNG]
    done = sweep(*arguments)
    waiting = [folder for folder in find_run_folders(done.folder) if read_record(folder).status is Status.pruned]
    for folder in waiting:
        record = read_record(folder)
        record.status = Status.preempted
        record.write(folder)
    again = sweep(*arguments)
    assert again.code == 0, again.shown
    assert [(read_record(one).status, read_record(one).attempts) for one in waiting] == [(Status.pruned, 1)] * 2


@pytest.mark.slow
def test_a_batch_that_was_found_too_large_stays_smaller_at_later_rungs(
    sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done
) -> None:
    plant({"at": "every step", "do": "run_out_of_memory", "fits": 4})
    rates = "train.learning_rate=0.002,0.003"
    done = sweep(rates, "sweep.early_stopping=halving", *ONE_RUNG, "sweep.concurrent_trials=1")
    assert done.code == 0, done.shown
    assert sorted(record.attempts for record in done.records()) in ([1, 3], [2, 2])  # one more in all than rungs
    winner = winner_of(done)
    assert done.plan(winner).batch.per_device_train_batch_size == 4
    assert done.by_rate()[winner].objective == pytest.approx(quiet.by_rate()[winner].objective, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.rungs=[0.6,0.2]"], "must be rising shares"),
        (["sweep.rungs=[0.2,1.5]"], "must be rising shares"),
        (["sweep.rungs=[]"], "must be rising shares"),
        (["sweep.reduction_factor=1"], "sweep.reduction_factor=1.0: must be a number above 1"),
        (["sweep.reduction_factor=nan"], "sweep.reduction_factor=nan: must be a number above 1"),
        (["hydra/launcher=basic"], "sweep.early_stopping=asha needs hydra/launcher=pool"),
        (["train.max_steps=10"], "compares trials at equal tokens"),
        (["train.num_train_epochs=1,2"], "compares trials at equal tokens"),
        (["sweep.num_seeds=3"], "would choose among the seeds"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(overrides: list[str], message: str) -> None:
    arguments = ["-m", "sweep=asha", "compute.device=cpu", *overrides]
    with composed(arguments) as composition, pytest.raises(ConfigError, match=message):
        plan_sweep(composition)


def test_random_search_can_stop_early_too() -> None:
    arguments = ["-m", "sweep=random", "sweep.num_trials=4", "sweep.early_stopping=asha", "compute.device=cpu"]
    with composed(arguments) as composition:
        assert len(list(plan_sweep(composition)[1].values())) == 4


def test_bayesian_search_with_rungs_is_refused(sweep: Callable[..., Done]) -> None:
    done = sweep("sweep=optuna", "sweep.early_stopping=median")
    assert done.code == 2
    assert "sweep.early_stopping=median: Bayesian search learns from trained trials" in " ".join(done.shown.split())


def test_a_rung_is_a_planned_evaluation_after_warmup() -> None:
    assert rung_step(0.2, 0.2, 100, 5) == 20
    assert rung_step(0.2, 0.2, 100, 20) == 40
    assert rung_step(0.25, 0.2, 100, 5) == 40
    assert rung_step(0.9, 0.5, 100, 5) == 100
