"""How many trials run at once, and what each may use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional

from omegaconf import DictConfig

from sft_experiments.errors import ConfigError
from sft_experiments.launch.booking import booked, candidates
from sft_experiments.plan.machine import cpu_count, resolve_device
from sft_experiments.schema import ComputeConfig, Device

LARGE_MODEL_CORES = 4  # a model beyond the tiny class gets at least so many cores to itself


@dataclass(frozen=True)
class Slot:
    """A place where one trial at a time runs."""

    index: int
    visible_devices: Optional[str] = None  # CUDA_VISIBLE_DEVICES; None: as inherited


def concurrent_trials(master: DictConfig, cells: int) -> int:
    """One trial per GPU (or per group of them); on CPU one per core for tiny models, fewer for larger ones.

    A trial with several ranks on the CPU takes the cores of each.
    """
    configured: Optional[int] = master.sweep.concurrent_trials
    if configured is not None:
        if configured < 1:
            raise ConfigError(f"sweep.concurrent_trials={configured}: must be at least 1, or null to choose")
        return min(configured, cells)
    device = resolve_device(Device(master.compute.device), master.compute.devices).value
    if device == "cuda":
        return max(1, min(len(candidates(master.compute.devices)) // int(master.compute.num_devices), cells))
    if device == "mps":
        return 1
    return max(1, min(cpu_count() // _cores_per_trial(master), cells))


def _cores_per_trial(master: DictConfig) -> int:
    if master.compute.threads is not None:
        return int(master.compute.threads)
    per_rank = 1 if master.model.size_class == "tiny" else LARGE_MODEL_CORES
    return per_rank * int(master.compute.num_devices)


@contextmanager
def slots(parallel: int, compute: ComputeConfig, device: str) -> Iterator[list[Slot]]:
    """The slots of a sweep; on CUDA each has its own devices, so that none is ever booked twice."""
    if device != "cuda":
        yield [Slot(index) for index in range(parallel)]
        return
    size = compute.num_devices
    with booked(compute.devices, parallel * size) as found:
        names = [gpu.visible_as for gpu in found]
        yield [Slot(index, ",".join(names[index * size : (index + 1) * size])) for index in range(parallel)]
