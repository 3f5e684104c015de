"""Failure is data: whatever becomes of a trial is recorded with its class, and all others finish."""

from collections.abc import Callable

import pytest

from sft_experiments.run.record import Status
from sft_experiments.sweep import pool
from tests.sweep.conftest import Done

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
RATES = "train.learning_rate=0.001,1e30," + ",".join(map(str, FAULTS)) + ",0.002"


def test_one_grid_with_every_kind_of_failure(
    sweep: Callable[..., Done], plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "GRACE_SECONDS", 1.0)  # the hanging trial does not save either
    plant(*({"in": {"learning_rate": rate}, "at": 3, "do": do, "fits": 0} for rate, do in FAULTS.items()))
    done = sweep(RATES, "sweep.timeout_seconds=40")
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
        assert f"{status}: learning_rate={rate}" in done.shown
    assert failures[0.0011].message == "planted error"
    assert any("ValueError: planted error" in line for line in failures[0.0011].log_tail)
    assert [failures[rate].kind for rate in (0.0012, 0.0013)] == ["exit code 7", "exit code 11"]
    assert [failures[rate].kind for rate in (0.0014, 0.0015)] == ["SIGSEGV", "SIGKILL"]
    assert "memory runs out" in failures[0.0015].message
    assert "peft=lora" in failures[0.0017].message
    attempts = {rate: record.attempts for rate, record in done.by_rate().items()}
    assert [attempts[rate] for rate in (0.001, 0.0011, 0.0014, 0.0015, 0.0016)] == [1, 1, 2, 2, 1]
    assert attempts[0.0017] == 4  # 8, 4, 2 and 1 per device
