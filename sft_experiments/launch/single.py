"""One trial from its start to its record, tried again with a smaller batch where memory ran out.

The same function serves `sft train`, every launcher of Hydra's, and the debugger.
"""

import signal

from sft_experiments.errors import RunFolderError
from sft_experiments.files import is_held
from sft_experiments.launch.ranks import await_ranks
from sft_experiments.launch.retry import advise_on_memory, recall, smaller_batch
from sft_experiments.launch.settle import raise_for_failure, settle
from sft_experiments.launch.start import ColdStarter, InProcess, Starter
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.machine import check_sharding, first_gpus
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Record, Status, read_record

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
    record, code = _attempt(trial, starter)
    while (smaller := smaller_batch(trial, record)) is not None:
        trial = smaller
        record, code = _attempt(trial, starter)
    advise_on_memory(trial, record)
    return raise_for_failure(record, code)


def _attempt(trial: Trial, starter: Starter) -> tuple[Record, int]:
    """Start a worker on the trial's folder; returns the record it leaves and its exit code."""
    trial.write()
    ranks = trial.plan.batch.num_devices
    worker = starter.start(trial, first_gpus(ranks) if trial.plan.device.value == "cuda" else None)
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
