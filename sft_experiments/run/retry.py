"""Out of memory keeps the experiment: a smaller per-device batch, more accumulation, the same effective batch."""

from dataclasses import replace
from typing import Any, Optional

from sft_experiments.plan.batch import BatchPlan
from sft_experiments.run.record import Record, Status
from sft_experiments.run.trial import Trial
from sft_experiments.schema import PeftMethod


def smaller_batch(trial: Trial, record: Record) -> Optional[Trial]:
    """The same trial with about half the per-device batch after it ran out of memory; None when there is none."""
    batch = trial.plan.batch.halved() if record.status is Status.oom else None
    if batch is None:
        return None
    before = trial.plan.batch
    note = (
        f"out of memory with {before.per_device_train_batch_size} per device: continued with"
        f" {batch.per_device_train_batch_size} x {batch.gradient_accumulation_steps} accumulation steps,"
        f" the same effective batch of {batch.effective_batch_size}"
    )
    return with_batch(trial, batch, note)


def with_batch(trial: Trial, batch: BatchPlan, note: str) -> Trial:
    """The trial with another split of the same effective batch, in its plan and its record."""
    plan = replace(trial.plan, batch=batch)
    record = replace(trial.record, plan={**trial.record.plan, **plan.as_dict()}, notes=[*trial.record.notes, note])
    return replace(trial, plan=plan, record=record)


def limited(trial: Trial, limit: int) -> Trial:
    """The trial with its per-device batch halved until it is at most ``limit``."""
    batch = trial.plan.batch
    while batch.per_device_train_batch_size > limit and (smaller := batch.halved()) is not None:
        batch = smaller
    if batch is trial.plan.batch:
        return trial
    return with_batch(trial, batch, f"per-device batch {batch.per_device_train_batch_size}: a larger one did not fit")


def same_shape(one: Trial, other: Trial) -> bool:
    """Whether two trials need the same memory per example."""
    return _shape(one) == _shape(other)


def _shape(trial: Trial) -> tuple[Any, ...]:
    config = trial.config
    return (
        (config.model.name, str(config.model.config), config.model.attn_implementation),
        (config.dataset.max_length, config.dataset.packing),
        (config.peft.method, config.peft.r, config.peft.target_modules),
        (config.train.optim, config.train.activation_checkpointing, trial.plan.precision.value),
    )


def advise_on_memory(trial: Trial, record: Record) -> None:
    """Add what would help to the failure of a trial that runs out of memory with one example at a time."""
    if record.status is not Status.oom or record.failure is None or smaller_batch(trial, record) is not None:
        return
    config = trial.config
    ways = [
        ("peft=lora", config.peft.method is PeftMethod.none),
        ("train.activation_checkpointing=true", not config.train.activation_checkpointing),
        (f"a smaller dataset.max_length than {config.dataset.max_length}", True),
    ]
    advice = ", ".join(way for way, is_open in ways if is_open)
    record.failure.message += f"; even one example per device does not fit: try {advice}"
    record.write(trial.folder)
