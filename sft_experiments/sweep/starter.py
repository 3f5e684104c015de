"""Warm starters: a fork server that has imported torch, transformers and trl once gives each trial a clean process
in a fraction of a second, where a fresh interpreter spends several seconds on imports.

Nothing here or in what is preloaded may start a thread pool or touch CUDA before the fork
(tests/sweep/test_starter.py looks).
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Optional

from sft_experiments.run.folder import RunFolder
from sft_experiments.run.launch import LAUNCHER_VARIABLE, worker_environment
from sft_experiments.run.ranks import rank_command

PRELOAD = "sft_experiments.sweep.preload"


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
