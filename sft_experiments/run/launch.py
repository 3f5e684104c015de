"""Run one trial in a process of its own and tell what became of it. The same function serves every launcher."""

import os
import signal
import subprocess
import sys

from sft_experiments.errors import RunFolderError, TrainingFailed
from sft_experiments.run.folder import RunFolder
from sft_experiments.run.lock import is_held
from sft_experiments.run.record import Failure, Record, Status, read_record, utc_now
from sft_experiments.run.retry import advise_on_memory, smaller_batch
from sft_experiments.run.trial import Trial

LOG_TAIL_LINES = 20
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
    trial.start_over()
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
    command = [sys.executable, "-m", "sft_experiments.training.worker", str(trial.folder.path)]
    environment = {**worker_environment(trial.plan.threads), LAUNCHER_VARIABLE: str(os.getpid())}
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal sent it to the worker too, which saves and exits
            continue


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of a worker: no more threads than planned, idle ones asleep, no telemetry."""
    ours = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**os.environ, **ours}


def settle(folder: RunFolder, exit_code: int) -> Record:
    """The final record of a worker that has ended; a worker that died without a word is recorded here."""
    record = read_record(folder)
    if record.status not in {Status.pending, Status.running}:
        return record
    record.status = Status.killed if exit_code < 0 else Status.failed
    kind = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    hint = "; the system kills the largest process when memory runs out" if kind == "SIGKILL" else ""
    tail = log_tail(folder)
    last_words = f": {tail[-1].strip()}" if exit_code > 0 and tail else ""
    record.failure = Failure(kind, f"the worker process ended with {kind}{hint}{last_words}", tail)
    record.finished_at = utc_now()
    record.write(folder)
    return record


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
