"""Starting workers: the promise of a ``Starter``, and the three that this machine has.

A worker turns a run folder into a trained model (training/worker.py). How its process comes to life is the business of
a starter alone; what became of it is settled from the folder and the exit code (settle.py), whoever started it.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Optional, Protocol

from sft_experiments.launch.ranks import ENVIRONMENT, WORKER, rank_command
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.machine import forget_other_processes
from sft_experiments.runs.folder import LAUNCHER_VARIABLE, RunFolder

PRELOAD = "sft_experiments.launch.preload"
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
OF_THIS_PROCESS = ("WANDB_SERVICE",)  # W&B's service of an open run: it works in our folder and ends with us


class Worker(Protocol):
    """A worker that was started. ``multiprocessing`` and ``subprocess`` have the same words for it."""

    @property
    def exitcode(self) -> Optional[int]:
        """How it ended, negative for a signal; None while it is alive."""

    def terminate(self) -> None:
        """Ask it to save a checkpoint and end."""

    def kill(self) -> None:
        """End it at once."""


class Starter(Protocol):
    """A back end that runs workers: a fork server, fresh processes, a cluster's scheduler.

    The run folder has been written, and the back end must see it under the same path. Its environment for a worker is
    ``worker_environment``; standard output and error belong into the folder's log. ``devices`` is what
    CUDA_VISIBLE_DEVICES is to be; None: as inherited. A worker that the launcher outlives records its own end, so a
    back end that loses sight of one may say any exit code but 0.
    """

    def prepare(self, threads: int) -> None:
        """Called once before the first start; what takes long goes on beside."""

    def start(self, trial: Trial, devices: Optional[str] = None) -> Worker:
        """Start the worker of a trial, or of several ranks of it."""

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        """Return when one of the workers has ended, or after so many seconds."""


def worker_environment(threads: int, ranks: int = 1) -> dict[str, str]:
    """Environment of a worker: no more threads than planned (shared by its ranks), idle ones asleep, no telemetry."""
    ours = {
        **(ENVIRONMENT if ranks > 1 else {}),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which nvidia-smi counts, and so our plans
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # "is there a GPU?" must not start CUDA in the fork server
        # Lengths differ from batch to batch: fixed segments leave holes. An operator's own setting stays.
        **({} if {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ) else EXPANDABLE),
        "OMP_NUM_THREADS": str(max(1, threads // ranks)),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name not in OF_THIS_PROCESS}
    forget_other_processes(inherited)
    return {**inherited, **ours}


class ColdStarter:
    """A fresh interpreter with the terminal of this process: several seconds of imports, nothing shared."""

    def prepare(self, threads: int) -> None:
        """There is nothing to prepare."""

    def start(self, trial: Trial, devices: Optional[str] = None) -> "ColdWorker":
        ranks = trial.plan.batch.num_devices
        command = [sys.executable, "-m", WORKER, str(trial.folder.path)]
        if ranks > 1:
            command = rank_command(trial.folder, ranks)
        environment = {**worker_environment(trial.plan.threads, ranks), LAUNCHER_VARIABLE: str(os.getpid())}
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        with trial.folder.log.open("a") as log:  # of several ranks, only the first has the terminal
            return ColdWorker(subprocess.Popen(command, env=environment, stderr=log if ranks > 1 else None))

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while all(worker.exitcode is None for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)


class ColdWorker:
    """A process under the names of a ``Worker``."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.terminate, self.kill = process.terminate, process.kill

    @property
    def exitcode(self) -> Optional[int]:
        return self._process.poll()


class WarmStarter:
    """A fork server that has imported torch, transformers and trl once, and forks a clean process for each worker.

    That takes a fraction of a second, where a fresh interpreter spends several seconds on imports.
    Nothing here or in what is preloaded may start a thread pool or touch CUDA before the fork
    (tests/sweep/test_warm_start.py looks). Where some package does, the child notices and starts afresh.
    """

    def prepare(self, threads: int) -> None:
        multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD])
        resource_tracker.ensure_running()  # its own start would let the signal through
        with _environment(worker_environment(threads)), _held_back(signal.SIGINT):
            forkserver.ensure_running()

    def start(self, trial: Trial, devices: Optional[str] = None) -> Worker:
        folder, plan = trial.folder, trial.plan
        arguments = (str(folder.path), str(folder.log), plan.threads, devices, plan.batch.num_devices, os.getpid())
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=_work, args=arguments, name=folder.path.name)
        process.start()
        return process

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        connection.wait([worker.sentinel for worker in workers], timeout=seconds)  # type: ignore[attr-defined]  # ours


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
    if visible_devices is not None and _cuda_was_started():
        print("CUDA was started before the fork (by a package that transformers imports): a fresh process, for seconds")
        sys.stdout.flush()
        environment = {**worker_environment(threads), LAUNCHER_VARIABLE: str(os.getppid())}
        os.execve(sys.executable, [sys.executable, "-m", WORKER, folder], environment)
    from sft_experiments.training.worker import run  # slow: torch, transformers, trl; here they are imported already

    sys.exit(run(RunFolder(Path(folder)), threads=threads))


def _cuda_was_started() -> bool:
    """Whether the fork server has touched CUDA: it cannot be used in its children then, whoever did it.

    ``torch.cuda.is_initialized()`` does not tell: asking for the number of devices is enough.
    """
    import torch  # slow: 1 s; here it is imported already

    return torch.cuda._is_in_bad_fork()


class InProcess:
    """Train inside this process, for the debugger (compute.isolate=false)."""

    def prepare(self, threads: int) -> None:
        """There is nothing to prepare."""

    def start(self, trial: Trial, devices: Optional[str] = None) -> "Ended":
        from sft_experiments.training.worker import run  # slow: torch, transformers, trl, 5 s

        forget_other_processes(os.environ)
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        return Ended(run(trial.folder, trial.plan.threads))

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        """They have all ended."""


class Ended:
    """A worker that ended before ``start`` returned."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode

    def terminate(self) -> None:
        """It has ended."""

    def kill(self) -> None:
        """It has ended."""


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # a log is, whatever the terminal of the sweep


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """A signal that comes meanwhile reaches this process afterwards, and what starts here not until it lets it in.

    Ctrl-C reaches all processes at the terminal: the server would die while it imports. (preload.py lets it in, and
    ignores it; so do the server's children until they take it over.) Were it ignored here, one would be lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


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
