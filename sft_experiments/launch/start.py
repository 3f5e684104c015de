"""Run one trial in a process of its own and tell what became of it. The same function serves every launcher."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.files import is_held
from sft_experiments.launch.ranks import ENVIRONMENT, WORKER, await_ranks, rank_command
from sft_experiments.launch.retry import advise_on_memory, recall, smaller_batch
from sft_experiments.launch.settle import raise_for_failure, settle
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.machine import check_sharding, first_gpus
from sft_experiments.runs.folder import LAUNCHER_VARIABLE, RunFolder
from sft_experiments.runs.record import Record, Status, read_record

OF_THIS_PROCESS = ("WANDB_SERVICE",)  # W&B's service of an open run: it works in our folder and ends with us


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
        record.stop()
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


PRELOAD = "sft_experiments.launch.preload"


def warm_up(threads: int) -> None:
    """Start the fork server with the environment that trials need; returns at once, imports go on beside."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD])
    with _environment(worker_environment(threads)), _ignoring(signal.SIGINT):
        forkserver.ensure_running()


def start_worker(folder: RunFolder, threads: int, visible_devices: Optional[str] = None, ranks: int = 1) -> BaseProcess:
    """A process of its own that trains what ``folder`` describes, its output going to the folder's log.

    With several ranks it becomes their launcher.
    """
    arguments = (str(folder.path), str(folder.log), threads, visible_devices, ranks, os.getpid())
    process = multiprocessing.get_context("forkserver").Process(target=_work, args=arguments, name=folder.path.name)
    process.start()
    return process


def _work(folder: str, log: str, threads: int, visible_devices: Optional[str], ranks: int, sweep: int) -> None:
    """Runs in the forked child: a session and a log of its own, its devices, then the same worker as ever."""
    os.setsid()  # Ctrl-C at the terminal reaches the sweep alone, which then stops its trials in order
    _redirect_output(Path(log))
    if visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices
    if ranks > 1:
        environment = {**worker_environment(threads, ranks), LAUNCHER_VARIABLE: str(sweep)}
        command = rank_command(RunFolder(Path(folder)), ranks)
        os.execve(command[0], command, environment)
    from sft_experiments.training.worker import run

    sys.exit(run(RunFolder(Path(folder)), threads=threads))


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


@contextmanager
def _ignoring(number: signal.Signals) -> Iterator[None]:
    """What starts here ignores it, and so do its children until they take it over.

    Ctrl-C reaches all processes at the terminal: the server would die while it imports, a trial just after its fork.
    """
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The fork server reads OMP_* when it imports torch; this process keeps its own environment."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
