"""Out of memory keeps the experiment: a smaller per-device batch, more accumulation, the same effective batch."""

from dataclasses import replace
from typing import Optional

from sft_experiments.plan.batch import BatchPlan
from sft_experiments.run.record import Record, Status
from sft_experiments.run.trial import Trial


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
