"""What did not fit once is not tried again: by trials of the same shape, also in later launches."""

from collections.abc import Callable

import pytest

from sft_experiments.launch.retry import recall, same_shape, smaller_batch
from sft_experiments.launch.trial import Trial
from sft_experiments.runs.record import Status

Planned = Callable[..., Trial]
RATE = "train.learning_rate=0.0042"


@pytest.fixture
def shrunk(planned: Planned) -> Trial:
    """A trial of 32 per device that found room for 16, as its record says."""
    trial = planned("train.effective_batch_size=32")
    trial.record.status = Status.oom
    smaller = smaller_batch(trial, trial.record)
    assert smaller is not None
    assert smaller.plan.batch.per_device_train_batch_size == 16
    smaller.write()
    return smaller


def test_a_trial_of_the_same_shape_starts_with_what_fitted(shrunk: Trial, planned: Planned) -> None:
    trial = planned("train.effective_batch_size=64", RATE)
    (recalled,) = recall([trial])
    batch = recalled.plan.batch
    assert (batch.per_device_train_batch_size, batch.effective_batch_size) == (16, 64)
    assert recalled.plan.batch.gradient_accumulation_steps == 4
    assert recalled.record.notes == ["per-device batch 16: a larger one did not fit"]
    assert recalled.id == trial.id


def test_the_trial_itself_goes_on_with_it_and_hands_it_on(shrunk: Trial, planned: Planned) -> None:
    (again,) = recall([planned("train.effective_batch_size=32")])
    assert again.plan.batch == shrunk.plan.batch
    again.write()
    (other,) = recall([planned("train.effective_batch_size=32", RATE)])
    assert other.plan.batch == shrunk.plan.batch


@pytest.mark.parametrize(
    "change",
    ["train.activation_checkpointing=true", "dataset.max_length=32", "train.optim=sgd", "train.precision=bf16"],
)
def test_another_shape_is_left_alone(shrunk: Trial, planned: Planned, change: str) -> None:
    other = planned("train.effective_batch_size=32", change)
    assert not same_shape(other, shrunk)
    assert recall([other]) == [other]


def test_what_fits_anyway_and_what_is_run_anew_is_left_alone(shrunk: Trial, planned: Planned) -> None:
    for other in (planned("train.effective_batch_size=8"), planned("train.effective_batch_size=32", "rerun=true")):
        assert recall([other]) == [other]


def test_a_damaged_record_beside_it_is_no_obstacle(shrunk: Trial, planned: Planned) -> None:
    damaged = shrunk.folder.path.parent / "damaged" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    (recalled,) = recall([planned("train.effective_batch_size=32", RATE)])
    assert recalled.plan.batch == shrunk.plan.batch
