"""Failure is data: whatever becomes of a trial is recorded with its class, and all others finish."""

from collections.abc import Callable

import pytest

from sft_experiments.runs.record import Status
from sft_experiments.sweep import pool
from sft_experiments.values import format_value
from tests.sweep.conftest import QUIET_RATES, Done

pytestmark = pytest.mark.slow

FAULTS = {
    0.0011: "fail",
    0.0012: "leave",
    0.0013: "leave_at_once",
    0.0014: "segfault",
    0.0015: "be_killed",
    0.0016: "hang",
    0.0017: "run_out_of_memory",
}
RATES = "train.learning_rate=0.0016,0.001,1e30," + ",".join(map(str, sorted({*FAULTS} - {0.0016}))) + ",0.002"


def test_one_grid_with_every_kind_of_failure(
    sweep: Callable[..., Done], plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "GRACE_SECONDS", 1.0)  # the hanging trial does not save either
    plant(*({"in": {"learning_rate": rate}, "at": 3, "do": do, "fits": 0} for rate, do in FAULTS.items()))
    done = sweep(RATES, "sweep.timeout_seconds=20")
    assert {rate: record.status for rate, record in done.by_rate().items()} == {
        0.001: Status.completed,
        1e30: Status.diverged,
        0.0011: Status.failed,
        0.0012: Status.failed,
        0.0013: Status.failed,
        0.0014: Status.killed,
        0.0015: Status.killed,
        0.0016: Status.timeout,
        0.0017: Status.oom,
        0.002: Status.completed,
    }, done.shown
    assert done.code == 1
    assert "8 of 10 trials did not complete" in done.shown
    failures = {rate: record.failure for rate, record in done.by_rate().items() if record.failure}
    for rate, status in [(1e30, "diverged"), (0.0011, "failed"), (0.0016, "timeout"), (0.0017, "oom")]:
        assert f"{status}: learning_rate={format_value(rate)}" in done.shown
    assert failures[0.0011].message == "planted error"
    assert any("ValueError: planted error" in line for line in failures[0.0011].log_tail)
    assert [failures[rate].kind for rate in (0.0012, 0.0013)] == ["exit code 7", "exit code 11"]
    assert [failures[rate].kind for rate in (0.0014, 0.0015)] == ["SIGSEGV", "SIGKILL"]
    assert "memory runs out" in failures[0.0015].message
    assert "peft=lora" in failures[0.0017].message
    attempts = {rate: record.attempts for rate, record in done.by_rate().items()}
    assert [attempts[rate] for rate in (0.001, 0.0011, 0.0014, 0.0015, 0.0016)] == [1, 1, 2, 2, 1]
    assert attempts[0.0017] == 4  # 8, 4, 2 and 1 per device


def test_a_killed_trial_is_tried_again_and_ends_as_if_nothing_had_been(
    sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done
) -> None:
    plant(
        {"in": {"learning_rate": 0.001}, "at": 4, "do": "be_killed", "once": True},
        {"in": {"learning_rate": 0.002}, "at": "end", "do": "be_killed", "once": True},
    )
    done = sweep("train.learning_rate=0.001,0.002")
    assert done.code == 0, done.shown
    assert done.shown.count("retrying") == 2
    assert [record.attempts for record in done.records()] == [2, 2]
    for rate, record in done.by_rate().items():
        assert record.objective == quiet.by_rate()[rate].objective
        assert record.metrics["total_steps"] == 6
        assert done.weights(rate) == quiet.weights(rate)


def test_out_of_memory_keeps_the_effective_batch_and_the_result(
    sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done
) -> None:
    plant({"at": 3, "do": "run_out_of_memory", "fits": 2})
    done = sweep("train.learning_rate=0.001,0.002", "sweep.concurrent_trials=1")
    assert done.code == 0, done.shown
    first, second = done.by_rate()[0.001], done.by_rate()[0.002]
    for rate, record in done.by_rate().items():
        batch = done.plan(rate).batch
        assert (batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == (2, 4)
        assert record.objective == pytest.approx(quiet.by_rate()[rate].objective, abs=1e-5)
        assert any("did not fit" in note or "out of memory with 4 per device" in note for note in record.notes)
    assert first.attempts == 3  # 8, 4 and 2 per device
    assert second.attempts == 1  # waited, and so started with what fits


def test_a_later_launch_starts_with_the_batch_that_fitted(
    sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done
) -> None:
    plant({"at": 3, "do": "run_out_of_memory", "fits": 2})
    assert sweep("train.learning_rate=0.001,0.003").code == 0
    done = sweep(QUIET_RATES)  # 0.002 is new
    assert done.code == 0, done.shown
    new = done.by_rate()[0.002]
    assert new.attempts == 1
    assert done.plan(0.002).batch.per_device_train_batch_size == 2
    assert new.notes == ["per-device batch 2: a larger one did not fit"]
    assert new.objective == pytest.approx(quiet.by_rate()[0.002].objective, abs=1e-5)


def test_fail_fast_starts_nothing_after_the_first_failure(
    sweep: Callable[..., Done], plant: Callable[..., None]
) -> None:
    plant({"in": {"learning_rate": 0.002}, "at": 0, "do": "fail"})
    done = sweep("train.learning_rate=0.002,0.003,0.004", "sweep.concurrent_trials=1", "sweep.fail_fast=true")
    assert done.code == 1
    statuses = [record.status for record in done.by_rate().values()]
    assert statuses == [Status.failed, Status.pending, Status.pending]

    plant()
    again = sweep("train.learning_rate=0.002,0.003,0.004", "sweep.concurrent_trials=1", "sweep.retry_failed=true")
    assert again.code == 0, again.shown
    assert {record.status for record in again.records()} == {Status.completed}


def test_equal_values_written_differently_are_one_trial(sweep: Callable[..., Done]) -> None:
    done = sweep("train.learning_rate=2e-5,0.00002", "train.max_steps=1")
    assert done.code == 0, done.shown
    assert len(done.records()) == 1
