"""Which GPUs a run takes: of those that no other run of ours holds, the ones that are idle.

A GPU is held by binding a socket to its name. The system forgets the name with the process, whoever started it and
however it died; a lock file in a folder that several users share would need their permission.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Optional

from sft_experiments.errors import ConfigError
from sft_experiments.plan.gpus import VISIBLE, Gpu, gpus

Names = Optional[Sequence[str]]  # compute.devices


def candidates(named: Names) -> list[Gpu]:
    """GPUs for new work. Those that compute.devices names are taken as they are."""
    if named:
        return list(gpus(named))
    free = [gpu for gpu in gpus() if not is_held(gpu)]
    return [gpu for gpu in free if not gpu.is_busy] or free


@contextmanager
def booked(named: Names, count: int) -> Iterator[list[Gpu]]:
    """So many GPUs, held until the end of the block against other runs of ours on this machine.

    GPUs that compute.devices names may be shared. Raises ``ConfigError`` when too few are left.
    """
    with ExitStack() as held:
        taken: list[Gpu] = []
        for gpu in candidates(named):
            if len(taken) < count and (_hold(gpu, held) or named):
                taken.append(gpu)
        if len(taken) < count:
            raise ConfigError(
                f"{count} GPU(s) are needed, and of {len(gpus(named))} visible ones {len(taken)} are free of"
                " other runs: wait for those, or share with compute.devices=[0]"
            )
        yield taken


def _hold(gpu: Gpu, held: ExitStack) -> bool:
    """Whether nobody else holds it: from now on ``held`` does."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0sft_experiments GPU {gpu.visible_as}")  # Linux' abstract names, no files; CUDA is at home there
    except OSError:
        lock.close()
        return False
    held.enter_context(lock)
    return True


def is_held(gpu: Gpu) -> bool:
    """Whether a run of ours has it right now."""
    with ExitStack() as held:
        return not _hold(gpu, held)


def show_one_gpu(named: Names = None) -> None:
    """Let this process see one GPU, the idlest: of several, upstream's trainer would spread one model over all.

    For work inside this process, before CUDA starts in it. Without GPUs nothing happens.
    """
    found = candidates(named) or list(gpus(named))
    if found:
        os.environ[VISIBLE] = found[0].visible_as
