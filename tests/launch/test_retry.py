"""What did not fit once is not tried again: by trials of the same shape, also in later launches."""

from collections.abc import Callable

import pytest

from sft_experiments.launch.retry import advise_on_memory, recall, same_shape, smaller_batch
from sft_experiments.launch.trial import Trial
from sft_experiments.runs.record import Failure, Phase, Status, read_record

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


def out_of_memory(trial: Trial, phase: Phase) -> Trial:
    """The trial as a worker left it that ran out of memory in a phase."""
    trial.record.fail(Status.oom, Failure("OutOfMemoryError", "no room", phase=phase.value))
    trial.write()
    return trial


def test_fewer_rows_are_evaluated_together_and_trials_of_the_same_shape_start_with_them(planned: Planned) -> None:
    trial = out_of_memory(planned("train.per_device_eval_batch_size=5"), Phase.evaluation)
    smaller = smaller_batch(trial, trial.record)
    assert smaller is not None
    assert (smaller.plan.eval_batch(5), smaller.plan.batch) == (2, trial.plan.batch)
    smaller.write()
    (other,) = recall([planned("train.effective_batch_size=64", RATE)])
    assert other.plan.eval_batch(16) == 2
    assert other.plan.batch.per_device_train_batch_size == 64
    assert other.record.notes == ["per-device batch 2 in evaluation: a larger one did not fit"]
    last = smaller_batch(smaller, trial.record)
    assert last is not None
    assert last.plan.eval_batch(5) == 1
    assert smaller_batch(last, trial.record) is None


def test_a_worker_that_has_tried_single_prompts_is_not_started_again_for_its_answers(planned: Planned) -> None:
    trial = out_of_memory(planned(), Phase.generation)
    assert smaller_batch(trial, trial.record) is None


def test_ranks_that_share_a_model_answer_fewer_prompts_in_another_attempt(planned: Planned) -> None:
    shape = ["compute.num_devices=2", "train.optim=adamw_torch_fused"]
    trial = out_of_memory(planned(*shape, "compute.fsdp=true"), Phase.generation)
    smaller = smaller_batch(trial, trial.record)
    assert smaller is not None
    assert smaller.plan.generation_batch == 32
    smaller.write()
    (other,) = recall([planned(*shape, RATE)])
    assert other.plan.generation_batch == 32
    assert other.record.notes == ["generation with 32 prompts at a time: more did not fit"]


@pytest.mark.parametrize("phase", [Phase.start, Phase.data, Phase.loading, Phase.saving])
def test_where_a_batch_is_not_to_blame_none_is_halved(planned: Planned, phase: Phase) -> None:
    trial = out_of_memory(planned("train.effective_batch_size=32"), phase)
    assert smaller_batch(trial, trial.record) is None
    advise_on_memory(trial, trial.record)
    recorded = read_record(trial.folder).failure
    assert recorded is not None
    assert recorded.message.startswith("no room; a smaller batch does not help: try ")
    assert recorded.phase == phase.value


def test_a_damaged_record_beside_it_is_no_obstacle(shrunk: Trial, planned: Planned) -> None:
    damaged = shrunk.folder.path.parent / "damaged" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    (recalled,) = recall([planned("train.effective_batch_size=32", RATE)])
    assert recalled.plan.batch == shrunk.plan.batch
