"""One trial from its start to its record, and again with a smaller batch where memory ran out.

A retry keeps the experiment: a smaller per-device batch, more accumulation, the same effective batch. What did not fit
is remembered in the plans: trials of the same shape start with what is left, in later launches too.
``run_trial`` serves `sft train`, every launcher of Hydra's, and the debugger; the sweep's pool runs many side by side.
"""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.files import is_held
from sft_experiments.launch.booking import booked
from sft_experiments.launch.ranks import await_ranks
from sft_experiments.launch.settle import raise_for_failure, settle
from sft_experiments.launch.start import ColdStarter, InProcess, Starter
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.arithmetic import halved
from sft_experiments.plan.machine import check_sharding
from sft_experiments.runs.folder import RunFolder, find_run_folders
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


POLL_SECONDS = 1.0


def run_trial(trial: Trial) -> Record:
    """Train (or resume, or return what is already recorded) and return the record.

    Raises ``TrainingFailed`` with the failure's class when there is no trained model at the end.
    """
    earlier = trial.recorded()
    if is_held(trial.folder.lock):
        raise RunFolderError(f"{trial.folder.path} is in use: this trial is already being trained by another process")
    if earlier is not None and earlier.status is Status.completed and not trial.config.rerun:
        return earlier
    check_sharding(trial.plan.device.value, trial.config.compute.fsdp)
    trial.start_over()
    (trial,) = recall([trial])
    starter: Starter = ColdStarter() if trial.config.compute.isolate else InProcess()
    with _devices(trial) as devices:
        record, code = _attempt(trial, starter, devices)
        while (smaller := smaller_batch(trial, record)) is not None:
            trial = smaller
            record, code = _attempt(trial, starter, devices)
    advise_on_memory(trial, record)
    return raise_for_failure(record, code)


@contextmanager
def _devices(trial: Trial) -> Iterator[Optional[str]]:
    """CUDA_VISIBLE_DEVICES of its worker: with more GPUs than ranks, torch would spread one process over all."""
    if trial.plan.device.value != "cuda":
        yield None
        return
    with booked(trial.config.compute, trial.plan.batch.num_devices) as found:
        yield ",".join(gpu.visible_as for gpu in found)


def _attempt(trial: Trial, starter: Starter, devices: Optional[str]) -> tuple[Record, int]:
    """Start a worker on the trial's folder; returns the record it leaves and its exit code."""
    trial.write()
    ranks = trial.plan.batch.num_devices
    worker = starter.start(trial, devices)
    stopped = signal.SIGTERM
    while (code := worker.exitcode) is None:
        try:
            starter.wait([worker], POLL_SECONDS)
        except KeyboardInterrupt:  # the terminal sent it to the worker too, which saves and exits
            stopped = signal.SIGINT
    if stopped is signal.SIGINT:
        _record_ctrl_c(trial.folder, ranks)
    preempted = read_record(trial.folder).status is Status.preempted
    # The ranks' launcher tells only good from bad, and a second Ctrl-C may hit a worker that has saved.
    code = 128 + stopped if preempted and (ranks > 1 or code < 0) else code
    return settle(trial.folder, code), code


def _record_ctrl_c(folder: RunFolder, ranks: int) -> None:
    """Record a worker that Ctrl-C ended before it could save: while it was importing, or the second one."""
    if ranks > 1:
        await_ranks(folder, ranks)
    record = read_record(folder)
    if record.status in {Status.pending, Status.running}:
        record.stop()
        record.write(folder)
