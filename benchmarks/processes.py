"""Commands with all that they start, timed: a fork server and its trials outlive the command that asked for them.

On Linux this process becomes the parent of such orphans and waits for them, so that their CPU seconds are counted.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.harness import cpu_seconds

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
REPOSITORY = Path(__file__).parent.parent


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> tuple[float, float]:
    """(CPU, wall) seconds of a command: wall until it returns, CPU of it and of everything it started.

    Raises ``SystemExit`` with the end of its output when it fails. Call it from one thread.
    """
    return run_together([command], folder, **environment)


def run_together(commands: Sequence[Sequence[str | Path]], folder: Path, **environment: str) -> tuple[float, float]:
    """The same for commands that are started at once; wall until the last one returns."""
    _adopt_orphans()
    folder.mkdir(parents=True, exist_ok=True)
    before = _children()  # a fork server of this process goes on
    cpu, wall = cpu_seconds(), time.perf_counter()
    logs = [folder / f"output-{index}.txt" for index in range(len(commands))]
    started = [_start(command, folder, log, environment) for command, log in zip(commands, logs, strict=True)]
    codes = [process.wait() for process in started]
    wall = time.perf_counter() - wall
    for command, log, code in zip(commands, logs, codes, strict=True):
        if code:
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {code}\n{log.read_text()[-3000:]}")
    while orphans := _children() - before:
        os.waitpid(min(orphans), 0)
    return cpu_seconds() - cpu, wall


def python(*arguments: str | Path) -> list[str | Path]:
    """A command that runs this interpreter."""
    return [sys.executable, *arguments]


def sft(*arguments: str) -> list[str | Path]:
    return python("-m", "sft_experiments", *arguments)


def trl(*arguments: str) -> list[str | Path]:
    """The command line of TRL that is installed beside this interpreter."""
    return [Path(sys.executable).parent / "trl", *arguments]


def _start(
    command: Sequence[str | Path], folder: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "WANDB"))}
    variables |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    variables = {name: value for name, value in variables.items() if value}  # "" takes a variable away
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
