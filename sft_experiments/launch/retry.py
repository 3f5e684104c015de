"""One trial from its start to its record, and again with a smaller batch where memory ran out.

A retry keeps the experiment: a smaller per-device batch, more accumulation, the same effective batch; or fewer rows
evaluated together, which the loss over all tokens does not notice. It is a process of its own, since ranks that wait
for one that ran out of memory cannot go back, and nothing else gives all memory back. What did not fit is remembered in
the plans: trials of the same shape start with what is left, in later launches too.
``run_trial`` serves `sft train`, every launcher of Hydra's, and the debugger; the sweep's pool runs many side by side.
"""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

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
from sft_experiments.runs.plan_file import GENERATION_BATCH, BatchPlan, Plan, read_plan
from sft_experiments.runs.record import Phase, Record, Status, read_record
from sft_experiments.schema import Config, PeftMethod, Precision


def smaller_batch(trial: Trial, record: Record) -> Optional[Trial]:
    """The same trial with about half of the batch that ran out of memory; None when there is none, or none is to blame.

    Answers are generated with fewer prompts at a time by the worker itself, but for ranks that hold parts of a model.
    """
    if record.status is not Status.oom:
        return None
    phase, config = _phase_of(record), trial.config
    if phase is Phase.training:
        return _halve_training(trial)
    if phase is Phase.evaluation:
        return _halve_evaluation(trial, trial.plan.eval_batch(config.train.per_device_eval_batch_size))
    if phase is Phase.generation and config.compute.fsdp:
        return _halve_generation(trial, trial.plan.generation_batch)
    return None


def _phase_of(record: Record) -> Phase:
    """Where memory ran out. Records of 0.1.0 do not say it, and it was most likely there."""
    return Phase(record.failure.phase) if record.failure and record.failure.phase else Phase.training


def _halve_training(trial: Trial) -> Optional[Trial]:
    before, batch = trial.plan.batch, halved(trial.plan.batch)
    if batch is None:
        return None
    note = (
        f"out of memory with {before.per_device_train_batch_size} per device: continued with"
        f" {batch.per_device_train_batch_size} x {batch.gradient_accumulation_steps} accumulation steps,"
        f" the same effective batch of {batch.effective_batch_size}"
    )
    return with_batch(trial, batch, note)


def _halve_evaluation(trial: Trial, before: int) -> Optional[Trial]:
    if before == 1:
        return None
    note = f"out of memory in evaluation with {before} per device: continued with {before // 2}, the same loss"
    return _planned(trial, note, largest_eval_batch=before // 2)


def _halve_generation(trial: Trial, before: int) -> Optional[Trial]:
    if before == 1:
        return None
    note = f"out of memory in generation with {before} prompts at a time: continued with {before // 2}"
    return _planned(trial, note, generation_batch=before // 2)


def with_batch(trial: Trial, batch: BatchPlan, note: str) -> Trial:
    """The trial with another split of the same effective batch, in its plan and its record."""
    return _planned(trial, note, batch=batch, largest_batch=batch.per_device_train_batch_size)


def _planned(trial: Trial, note: str, **derived: Any) -> Trial:
    record = replace(trial.record, notes=[*trial.record.notes, note])
    return replace(trial, plan=replace(trial.plan, **derived), record=record)


NO_LIMIT = sys.maxsize


class Limits(NamedTuple):
    """What was left where more had not fitted: rows per device, and prompts that are answered together."""

    training: int = NO_LIMIT
    evaluation: int = NO_LIMIT
    generation: int = GENERATION_BATCH

    @classmethod
    def of(cls, plan: Plan) -> "Limits":
        return cls(plan.largest_batch or NO_LIMIT, plan.largest_eval_batch or NO_LIMIT, plan.generation_batch)

    def both(self, other: "Limits") -> "Limits":
        """The lower one of each."""
        return Limits(*map(min, self, other))


def limited(trial: Trial, limits: Limits) -> Trial:
    """The trial with its batches halved or cut until they are within the limits."""
    batch, rows = trial.plan.batch, trial.config.train.per_device_eval_batch_size
    while batch.per_device_train_batch_size > limits.training and (smaller := halved(batch)) is not None:
        batch = smaller
    if batch is not trial.plan.batch:
        note = f"per-device batch {batch.per_device_train_batch_size}: a larger one did not fit"
        trial = with_batch(trial, batch, note)
    if limits.evaluation < trial.plan.eval_batch(rows):
        note = f"per-device batch {limits.evaluation} in evaluation: a larger one did not fit"
        trial = _planned(trial, note, largest_eval_batch=limits.evaluation)
    if limits.generation < trial.plan.generation_batch:
        note = f"generation with {limits.generation} prompts at a time: more did not fit"
        trial = _planned(trial, note, generation_batch=limits.generation)
    return trial


def same_shape(one: Trial, other: Trial) -> bool:
    """Whether two trials need the same memory per example."""
    return _shape(one.record.config, one.plan) == _shape(other.record.config, other.plan)


def recall(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with what earlier launches have learnt: no batch beyond what fitted one of the same shape.

    Reads the records beside the trials, once. ``rerun=true`` tries anew.
    """
    roots = {trial.folder.path.parent for trial in trials if not trial.config.rerun}
    learnt: dict[str, Limits] = {}
    for root in roots:
        for shape, limits in _learnt(root):
            learnt[shape] = learnt.get(shape, Limits()).both(limits)
    if not learnt:
        return list(trials)
    return [
        trial if trial.config.rerun else limited(trial, learnt.get(_shape(trial.record.config, trial.plan), Limits()))
        for trial in trials
    ]


def _learnt(root: Path) -> Iterator[tuple[str, Limits]]:
    """Shapes of which something did not fit, with what was left. A record that cannot be read tells nothing."""
    for folder in find_run_folders(root) if root.is_dir() else []:
        try:
            record, plan = read_record(folder), read_plan(folder)
        except RunFolderError:
            continue
        if (limits := Limits.of(plan)) != Limits():
            yield _shape(record.config, plan), limits


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
    """Add what would help to the failure of a trial that runs out of memory where no smaller batch is left."""
    if record.status is not Status.oom or record.failure is None or smaller_batch(trial, record) is not None:
        return
    record.failure.message += f"; {what_helps(trial.config, _phase_of(record))}"
    record.write(trial.folder)


ONE = {Phase.training: "example per device", Phase.evaluation: "row per device", Phase.generation: "prompt at a time"}


def what_helps(config: Config, phase: Phase) -> str:
    """What to try where memory runs out in a phase and no smaller batch is left, or none would help."""
    finding = f"even one {ONE[phase]} does not fit" if phase in ONE else "a smaller batch does not help"
    return f"{finding}: try " + ", ".join(way for way, is_open in _ways(config, phase) if is_open)


def _ways(config: Config, phase: Phase) -> list[tuple[str, bool]]:
    """What takes less memory in a phase, and whether it is still open."""
    train, peft, compute = config.train, config.peft, config.compute
    lora = ("peft=lora", peft.method is PeftMethod.none)
    shorter = (f"a smaller dataset.max_length than {config.dataset.max_length}", True)
    match phase:
        case Phase.start:
            return [("another device, or wait until others have left this one", True)]
        case Phase.data:
            return [("fewer rows, or a machine with more memory", True)]
        case Phase.training:
            recompute = ("train.activation_checkpointing=true", not train.activation_checkpointing)
            return [lora, recompute, shorter]
        case Phase.evaluation:
            return [lora, shorter]
        case Phase.generation:
            length = f"a smaller generation.max_new_tokens than {config.generation.max_new_tokens}"
            return [(length, True), ("generation.num_samples=0 with generation.exact_match_rows=0", True)]
        case Phase.loading | Phase.saving:
            return [
                lora,
                ("peft=qlora", peft.method is not PeftMethod.qlora and compute.num_devices == 1),
                ("train.precision=pure_bf16", train.precision is not Precision.pure_bf16),
                ("compute.fsdp=true", compute.num_devices > 1 and not compute.fsdp),
                ("a smaller model", True),
            ]


POLL_SECONDS = 1.0


def run_trial(trial: Trial) -> Record:
    """Train (or resume, or return what is already recorded) and return the record.

    Raises ``TrainingFailed`` with the failure's class when there is no trained model at the end.
    """
    trial.take_over()
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
    with booked(trial.config.compute.devices, trial.plan.batch.num_devices) as found:
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
