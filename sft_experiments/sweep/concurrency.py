"""How many trials run at once, and what each may use."""

from dataclasses import dataclass
from typing import Optional

from omegaconf import DictConfig

from sft_experiments.errors import ConfigError
from sft_experiments.plan.machine import cpu_count, gpus, resolve_device
from sft_experiments.schema import Device

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
    if resolve_device(Device(master.compute.device)).value != "cpu":
        return max(1, min(len(gpus()) // int(master.compute.num_devices), cells))
    return max(1, min(cpu_count() // _cores_per_trial(master), cells))


def _cores_per_trial(master: DictConfig) -> int:
    if master.compute.threads is not None:
        return int(master.compute.threads)
    per_rank = 1 if master.model.size_class == "tiny" else LARGE_MODEL_CORES
    return per_rank * int(master.compute.num_devices)


def slots(parallel: int, num_devices: int, device: str) -> list[Slot]:
    """The slots of a sweep; on CUDA each has its own devices, so that none is ever booked twice."""
    if device != "cuda":
        return [Slot(index) for index in range(parallel)]
    indices = [str(gpu.index) for gpu in gpus()]
    if len(indices) < parallel * num_devices:
        raise ConfigError(
            f"sweep.concurrent_trials={parallel} x compute.num_devices={num_devices} needs more GPUs than the"
            f" {len(indices)} visible ones"
        )
    groups = [indices[start : start + num_devices] for start in range(0, parallel * num_devices, num_devices)]
    return [Slot(index, ",".join(group)) for index, group in enumerate(groups)]
