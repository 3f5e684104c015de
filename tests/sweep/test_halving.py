"""Successive halving in real sweeps: fewer tokens, the same winner, and nothing lost of what was stopped."""

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from sft_experiments.composition import composed
from sft_experiments.errors import ConfigError
from sft_experiments.plan.cadence import rung_step
from sft_experiments.run.record import Status
from sft_experiments.sweep import halving
from sft_experiments.sweep.halving import check_halving
from tests.sweep.conftest import QUIET_RATES, Done

RUNGS = ["sweep.rungs=[0.5]"]


def last_step(done: Done, rate: float) -> int:
    return int(json.loads(done.trial(rate).metrics.read_text().splitlines()[-1])["step"])


@pytest.mark.slow
def test_the_winner_is_the_grids_and_the_others_stop_at_the_rung_with_a_checkpoint(
    sweep: Callable[..., Done], quiet: Done
) -> None:
    done = sweep(QUIET_RATES, *RUNGS)
    assert done.code == 0, done.shown
    statuses = {rate: record.status for rate, record in done.by_rate().items()}
    assert list(statuses.values()).count(Status.pruned) == 2
    (winner,) = [rate for rate, status in statuses.items() if status is Status.completed]
    assert done.by_rate()[winner].objective == quiet.by_rate()[winner].objective
    assert done.weights(winner) == quiet.weights(winner)
    for rate, status in statuses.items():
        if status is Status.pruned:
            assert last_step(done, rate) == 4  # the looks are after 1, 2, 4, 5 and 6 steps
            assert (done.trial(rate).checkpoints / "checkpoint-4" / "complete.json").is_file()
            assert f"pruned: learning_rate={rate}: rank" in done.shown

    again = sweep(QUIET_RATES, *RUNGS)  # nothing is left to do
    assert again.code == 0
    assert "started" not in again.shown
    assert {rate: record.status for rate, record in again.by_rate().items()} == statuses

    promoted = sweep(QUIET_RATES)  # the same grid without rungs: the stopped trials go on to the end
    assert promoted.code == 0, promoted.shown
    for rate, record in quiet.by_rate().items():
        assert promoted.by_rate()[rate].objective == record.objective
        assert promoted.weights(rate) == quiet.weights(rate)


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_halving_goes_on_with_the_same_decisions_after_an_interruption(
    sweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote = halving.promote

    def interrupted(*arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return promote(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(halving, "promote", interrupted)
    assert sweep(QUIET_RATES, *RUNGS).code == 130
    monkeypatch.undo()
    done = sweep(QUIET_RATES, *RUNGS)
    assert done.code == 0, done.shown
    assert sorted(record.attempts for record in done.records()) == [1, 1, 2]


@pytest.mark.slow
def test_a_failed_trial_takes_no_place_at_a_rung(sweep: Callable[..., Done], plant: Callable[..., None]) -> None:
    plant({"in": {"learning_rate": 0.003}, "at": 1, "do": "fail"})
    done = sweep(QUIET_RATES, *RUNGS)
    assert done.code == 1
    assert sorted(record.status.value for record in done.records()) == ["completed", "failed", "pruned"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.rungs=[0.6,0.2]"], "must be rising shares"),
        (["sweep.rungs=[0.2,1.5]"], "must be rising shares"),
        (["sweep.reduction_factor=1"], "sweep.reduction_factor=1.0: must be above 1"),
        (["hydra/launcher=basic"], "need hydra/launcher=pool"),
        (["train.max_steps=10"], "compare trials at equal tokens"),
        (["train.num_train_epochs=1,2"], "compare trials at equal tokens"),
    ],
)
def test_rungs_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with composed(["-m", "sweep=asha", "compute.device=cpu", *overrides]) as composition:
        _, trials = composition.sweep()
        with pytest.raises(ConfigError, match=message):
            check_halving(composition.master, trials)


def test_a_rung_is_a_planned_evaluation_after_warmup() -> None:
    assert rung_step(0.2, 0.2, 100, 5) == 20
    assert rung_step(0.2, 0.2, 100, 20) == 40
    assert rung_step(0.25, 0.2, 100, 5) == 40
    assert rung_step(0.9, 0.5, 100, 5) == 100
