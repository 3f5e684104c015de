"""Out of memory keeps the experiment: a smaller per-device batch, more accumulation, the same effective batch.

What did not fit is remembered in the records: trials of the same shape start with what is left, in later launches too.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.arithmetic import halved
from sft_experiments.runs.folder import find_run_folders
from sft_experiments.runs.plan_file import BatchPlan, Plan, read_plan
from sft_experiments.runs.record import Record, Status, read_record
from sft_experiments.schema import PeftMethod


def smaller_batch(trial: Trial, record: Record) -> Optional[Trial]:
    """The same trial with about half the per-device batch after it ran out of memory; None when there is none."""
    batch = halved(trial.plan.batch) if record.status is Status.oom else None
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
    plan = replace(trial.plan, batch=batch, largest_batch=batch.per_device_train_batch_size)
    record = replace(trial.record, notes=[*trial.record.notes, note])
    return replace(trial, plan=plan, record=record)


def limited(trial: Trial, limit: int) -> Trial:
    """The trial with its per-device batch halved until it is at most ``limit``."""
    batch = trial.plan.batch
    while batch.per_device_train_batch_size > limit and (smaller := halved(batch)) is not None:
        batch = smaller
    if batch is trial.plan.batch:
        return trial
    return with_batch(trial, batch, f"per-device batch {batch.per_device_train_batch_size}: a larger one did not fit")


def same_shape(one: Trial, other: Trial) -> bool:
    """Whether two trials need the same memory per example."""
    return _shape(one.record.config, one.plan) == _shape(other.record.config, other.plan)


def recall(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with what earlier launches have learnt: no per-device batch beyond what fitted one of the same shape.

    Reads the records beside the trials, once. ``rerun=true`` tries anew.
    """
    roots = {trial.folder.path.parent for trial in trials if not trial.config.rerun}
    limits = dict(sorted((limit for root in roots for limit in _learnt(root)), key=itemgetter(1), reverse=True))
    if not limits:
        return list(trials)
    return [
        trial
        if trial.config.rerun
        else limited(trial, limits.get(_shape(trial.record.config, trial.plan), sys.maxsize))
        for trial in trials
    ]


def _learnt(root: Path) -> Iterator[tuple[str, int]]:
    """Shapes whose batch had to be halved, with what was left. A record that cannot be read tells nothing."""
    for folder in find_run_folders(root) if root.is_dir() else []:
        try:
            record, plan = read_record(folder), read_plan(folder)
        except RunFolderError:
            continue
        if plan.largest_batch is not None:
            yield _shape(record.config, plan), plan.largest_batch


def _shape(config: dict[str, Any], plan: Plan) -> str:
    """All that decides what an example needs, and what there is: settings, number format and devices."""
    groups = {
        "model": ("name", "config", "attn_implementation"),
        "dataset": ("max_length", "packing"),
        "peft": ("method", "r", "target_modules"),
        "train": ("optim", "activation_checkpointing"),
    }
    settings = [config.get(group, {}).get(key) for group, keys in groups.items() for key in keys]
    return json.dumps([settings, plan.precision.value, asdict(plan.device), plan.batch.num_devices], sort_keys=True)


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
