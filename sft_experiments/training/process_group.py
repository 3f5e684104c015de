"""What the processes of one trial do together: meet, agree on when to stop, and take turns with files.

With one process each of these does nothing. torch.distributed.run tells a process its number (RANK) and how many there
are (WORLD_SIZE).
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Optional

import psutil
import torch.distributed
from accelerate import PartialState

from sft_experiments.schema import Config, TerminalMode

LONGEST_WAIT = timedelta(hours=12)  # for the first rank, which may be preparing the data or fetching the model
# For one another while training: a rank that is gone is missed within it, and whole checkpoints are written in less.
# It is what transformers takes by default (ddp_timeout); NCCL alone waits 10 minutes.
COLLECTIVE_WAIT = timedelta(minutes=30)
POLL_SECONDS = 0.5
_patient: list[torch.distributed.ProcessGroup] = []  # all ranks, for waits of any length: over gloo, without a device


def this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet(device: str) -> None:
    """Join the other ranks, over gloo on the CPU and NCCL on CUDA; each takes its own device."""
    if num_ranks() > 1:
        PartialState(cpu=device == "cpu", timeout=COLLECTIVE_WAIT)
        _patient.append(torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))


def part() -> None:
    """The counterpart, for an end in order: an end by failure must not wait for the others."""
    _patient.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait_for_all() -> None:
    if num_ranks() > 1:
        PartialState().wait_for_everyone()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The others run the block when the first has, however long that one takes to get there."""
    if num_ranks() > 1 and this_rank() > 0:
        torch.distributed.barrier(_patient[0])
    yield
    if num_ranks() > 1 and this_rank() == 0:
        torch.distributed.barrier(_patient[0])


def of_first_rank(value: Any) -> Any:
    """The first rank's value on all, however long it takes to come."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=_patient[0])
    return values[0]


def largest(value: int) -> int:
    """Over all ranks."""
    if num_ranks() == 1:
        return value
    gathered = torch.tensor(value, device=PartialState().device)
    torch.distributed.all_reduce(gathered, torch.distributed.ReduceOp.MAX)
    return int(gathered.item())


def silenced(config: Config) -> Config:
    """The config of a rank above 0: what it would show and judge, the first rank does."""
    config.logger.trackers = []
    config.monitor.rules = {}
    config.monitor.terminal = TerminalMode.quiet
    config.monitor.stall_seconds = None
    return config


def end_with_launcher(launcher: Optional[int]) -> None:
    """Watch the processes above, for ever: torch's launcher, and the sweep or command that started it.

    Without torch's launcher nobody would stop the ranks or tell how they ended: they end at once. Without the command
    they save a checkpoint and stop.
    """
    above = os.getppid()
    while os.getppid() == above:
        if launcher is not None and not _lives(launcher):
            os.kill(os.getpid(), signal.SIGTERM)
            launcher = None
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _lives(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
