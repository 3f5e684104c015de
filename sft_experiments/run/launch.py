"""Run one trial in a process of its own and tell what became of it. The same function serves every launcher."""

import os
import signal
import subprocess
import sys

from sft_experiments.errors import RunFolderError, TrainingFailed
from sft_experiments.plan.device import check_sharding, first_gpus
from sft_experiments.run.folder import RunFolder
from sft_experiments.run.lock import is_held
from sft_experiments.run.ranks import (
    ENVIRONMENT,
    WORKER,
    await_ranks,
    first_failure,
    folder_of,
    last_words,
    num_ranks,
    rank_command,
)
from sft_experiments.run.record import Failure, Record, Status, read_record, utc_now
from sft_experiments.run.retry import advise_on_memory, recall, smaller_batch
from sft_experiments.run.trial import Trial

LOG_TAIL_LINES = 20
OF_THIS_PROCESS = ("WANDB_SERVICE",)  # W&B's service of an open run: it works in our folder and ends with us
LAUNCHER_VARIABLE = "SFT_LAUNCHER_PID"  # the worker stops, with a checkpoint, when this process is gone


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
    record, code = _attempt(trial)
    while (smaller := smaller_batch(trial, record)) is not None:
        trial = smaller
        record, code = _attempt(trial)
    advise_on_memory(trial, record)
    return raise_for_failure(record, code)


def _attempt(trial: Trial) -> tuple[Record, int]:
    """Start a worker on the trial's folder; returns the record it leaves and its exit code."""
    trial.write()
    if trial.config.compute.isolate:
        code = _in_own_process(trial)
    else:
        from sft_experiments.training.worker import run  # heavy: torch, transformers, trl

        code = run(trial.folder, trial.plan.threads)
    return settle(trial.folder, code), code


def _in_own_process(trial: Trial) -> int:
    """Start a worker, pass Ctrl-C on to it by waiting, and return its exit code (negative: a signal)."""
    ranks = trial.plan.batch.num_devices
    command = [sys.executable, "-m", WORKER, str(trial.folder.path)]
    if ranks > 1:
        command = rank_command(trial.folder, ranks)
    environment = {**worker_environment(trial.plan.threads, ranks), LAUNCHER_VARIABLE: str(os.getpid())}
    if trial.plan.device.value == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = first_gpus(ranks)
    with trial.folder.log.open("a") as log:  # of several ranks, only the first has the terminal
        process = subprocess.Popen(command, env=environment, stderr=log if ranks > 1 else None)
    stopped = signal.SIGTERM
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal sent it to the worker too, which saves and exits
            stopped = signal.SIGINT
            continue
        if stopped is signal.SIGINT:
            _record_ctrl_c(trial.folder, ranks)
        preempted = read_record(trial.folder).status is Status.preempted
        # The ranks' launcher tells only good from bad, and a second Ctrl-C may hit a worker that has saved.
        return 128 + stopped if preempted and (ranks > 1 or code < 0) else code


def _record_ctrl_c(folder: RunFolder, ranks: int) -> None:
    """Record a worker that Ctrl-C ended before it could save: while it was importing, or the second one."""
    if ranks > 1:
        await_ranks(folder, ranks)
    record = read_record(folder)
    if record.status in {Status.pending, Status.running}:
        record.status, record.finished_at = Status.preempted, utc_now()
        record.write(folder)


def worker_environment(threads: int, ranks: int = 1) -> dict[str, str]:
    """Environment of a worker: no more threads than planned (shared by its ranks), idle ones asleep, no telemetry."""
    ours = {
        **(ENVIRONMENT if ranks > 1 else {}),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which nvidia-smi counts, and so our plans
        "OMP_NUM_THREADS": str(max(1, threads // ranks)),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name not in OF_THIS_PROCESS}
    return {**inherited, **ours}


def settle(folder: RunFolder, exit_code: int) -> Record:
    """The final record of a worker that has ended; a worker that died without a word is recorded here."""
    record = read_record(folder)
    if (ranks := num_ranks(record)) > 1:
        await_ranks(folder, ranks)
        return settle_ranks(folder, exit_code, ranks)
    if record.status in {Status.pending, Status.running}:
        _record_death(record, folder, exit_code, "the worker process", log_tail(folder))
    return record


def settle_ranks(folder: RunFolder, exit_code: int, ranks: int) -> Record:
    """The same for several ranks: what the one that failed first died of, whatever the others made of its end."""
    record, cause = read_record(folder), first_failure(folder, ranks) if exit_code > 0 else None
    if record.status in {Status.completed, Status.pruned}:
        return record
    tail = last_words(folder, ranks).splitlines()[-LOG_TAIL_LINES:]
    if cause is None:
        if record.status in {Status.pending, Status.running}:
            _record_death(record, folder, exit_code, "the launcher of the ranks", tail)
        return record
    rank, code = cause
    own = read_record(folder_of(folder, rank)) if folder_of(folder, rank).record.is_file() else None
    if code > 0 and own is not None and own.failure is not None:
        record.status, record.failure = own.status, own.failure
        record.write(folder)
    else:
        _record_death(record, folder, code, f"rank {rank}", tail)
    return record


def _record_death(record: Record, folder: RunFolder, exit_code: int, who: str, tail: list[str]) -> None:
    """A process ended without a word about why."""
    record.status = Status.killed if exit_code < 0 else Status.failed
    kind = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    hint = "; the system kills the largest process when memory runs out" if kind == "SIGKILL" else ""
    said = f": {tail[-1].strip()}" if exit_code > 0 and tail else ""
    record.failure = Failure(kind, f"{who} ended with {kind}{hint}{said}", tail)
    record.finished_at = utc_now()
    record.write(folder)


def log_tail(folder: RunFolder, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a run's log; empty when there is none."""
    if not folder.log.is_file():
        return []
    return folder.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def raise_for_failure(record: Record, code: int = 1) -> Record:
    """The record of a completed trial; ``TrainingFailed`` with the worker's exit code for any other."""
    if record.status is Status.completed:
        return record
    reason = record.failure.message if record.failure else "stopped; the same command goes on where it was"
    error = TrainingFailed(reason, record.status.value)
    error.exit_code = code if code > 0 else error.exit_code
    raise error
