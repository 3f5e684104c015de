"""The GPUs that a run may use, as NVIDIA's driver tells through NVML: how large, how full, near which CPU cores.

An answer that cannot be had is never taken for "no GPU": where a driver is there and NVML does not answer (a container
without it, an upgrade without a reboot), torch is asked in another process, and when it does not know either, that is
an error. Imports no torch.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Optional

import pynvml

from sft_experiments.errors import ConfigError
from sft_experiments.values import GIB

VISIBLE = "CUDA_VISIBLE_DEVICES"
SLURMS_NONE = "NoDevFiles"  # what Slurm writes into CUDA_VISIBLE_DEVICES of a job that was given no GPU
DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvhost-ctrl-gpu")  # the last: Jetson
BUSY_SHARE = 0.1  # of its memory in the hands of others: a screen takes less, a training more
BITS_OF_A_WORD = 64
MOST_CORES = 4096


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: a whole card, or a MIG instance of one."""

    index: int  # of its card, as nvidia-smi counts
    name: str
    memory_gib: Optional[float]  # None: it shares the host's (Grace, Jetson)
    compute_capability: float
    uuid: str = ""
    used_gib: float = 0.0  # of it, by other processes
    near_cores: frozenset[int] = frozenset()  # CPU cores; empty: not told

    @property
    def is_part(self) -> bool:
        """A MIG instance. A process can use one, and never two together."""
        return self.uuid.startswith("MIG-")

    @property
    def visible_as(self) -> str:
        """Its name in CUDA_VISIBLE_DEVICES: the UUID, which means the same in whatever order CUDA counts."""
        return self.uuid or str(self.index)

    @property
    def is_busy(self) -> bool:
        return self.memory_gib is not None and self.used_gib > BUSY_SHARE * self.memory_gib

    def answers_to(self, name: str) -> bool:
        """Whether it is meant by a number, or by the beginning of its UUID, as CUDA reads them."""
        return str(self.index) == name if name.isdecimal() else bool(name) and self.uuid.startswith(name)

    def __str__(self) -> str:
        if self.memory_gib is None:
            return f"{self.name}, the host's memory"
        size = f"{self.name}, {self.memory_gib:.0f} GiB"
        if not self.is_busy:
            return size
        return f"{size}; card {self.index}: {self.used_gib:.0f} of {self.memory_gib:.0f} GiB in use by others"


class NotAsked(Exception):
    """NVML or torch could not tell which GPUs there are; the message says why."""


def gpus(chosen: Optional[Sequence[str]] = None) -> tuple[Gpu, ...]:
    """What CUDA_VISIBLE_DEVICES leaves visible, or of that the ``chosen`` ones, in the order of the names.

    Names are numbers as nvidia-smi counts or UUIDs of GPUs or MIG instances (their beginnings will do).
    Raises ``ConfigError`` for a name that is no GPU here, and where a driver is there but cannot be asked.
    """
    visible = _visible(os.environ.get(VISIBLE))
    if not chosen:
        return visible
    return _named(chosen, visible, "compute.devices")


def cores_beside(place: int) -> frozenset[int]:
    """CPU cores near one of the visible GPUs; empty where nobody tells, which is never an error."""
    try:
        visible = _visible_to_nvml(os.environ.get(VISIBLE))
    except (NotAsked, ConfigError):
        return frozenset()
    return visible[place].near_cores if place < len(visible) else frozenset()


@lru_cache
def _visible(variable: Optional[str]) -> tuple[Gpu, ...]:
    try:
        return _visible_to_nvml(variable)
    except NotAsked as reason:
        names = None if variable is None else _names(variable)
        if _driver_is_there():
            return _from_torch(names, str(reason))
        return _named(names or [], (), VISIBLE)


def _visible_to_nvml(variable: Optional[str]) -> tuple[Gpu, ...]:
    names = None if variable is None else _names(variable)
    if names == []:
        return ()
    found = _from_nvml()
    return found if names is None else _named(names, found, VISIBLE)


def _names(variable: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES, as CUDA reads it: a negative number ends the list."""
    names = (name.strip() for name in variable.split(","))
    return list(takewhile(lambda name: name and not name.startswith("-") and name != SLURMS_NONE, names))


def _named(names: Sequence[str], among: Sequence[Gpu], key: str) -> tuple[Gpu, ...]:
    found: list[Gpu] = []
    for name in names:
        match = next((gpu for gpu in among if gpu.answers_to(name)), None)
        if match is None:
            there = ", ".join(f"{gpu.uuid if gpu.is_part else gpu.index} ({gpu.name})" for gpu in among) or "none"
            way = f"; unset {VISIBLE}, or compute.device=cpu trains on the CPU" if key == VISIBLE else ""
            raise ConfigError(f"{key}={','.join(names)}: no GPU {name} is here; GPUs: {there}{way}")
        if match in found:
            raise ConfigError(f"{key}={','.join(names)}: names GPU {name} twice")
        found.append(match)
    return tuple(found)


def _driver_is_there() -> bool:
    return any(Path(file).exists() for file in DRIVER_FILES)


# ---- NVML


def _from_nvml() -> tuple[Gpu, ...]:
    """All GPUs of this machine; of a card that is cut into MIG instances, these. Raises ``NotAsked``."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NotAsked(f"NVML: {error}") from error
    try:
        return tuple(
            _gpu(index, card, part) for index, card in enumerate(_cards()) for part in (_instances(card) or [card])
        )
    except pynvml.NVMLError as error:  # a card that fell off its bus, say: CUDA would not start either
        raise NotAsked(f"NVML: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _cards() -> Iterator[Any]:
    """The cards that this process may talk to: NVML counts those too that a container or a cgroup keeps from it."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError_NoPermission):
            yield pynvml.nvmlDeviceGetHandleByIndex(index)


def _instances(card: Any) -> list[Any]:
    """The MIG instances of a card; none where it is whole."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(card)
        if current != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        places = range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return []
    found = []
    for place in places:
        with suppress(pynvml.NVMLError_NotFound):  # places need not be filled
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place))
    return found


def _gpu(index: int, card: Any, part: Any) -> Gpu:
    """``part`` is the card itself or one of its instances."""
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(card)
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(part)
        total, used = memory.total / GIB, (memory.total - memory.free) / GIB
    except pynvml.NVMLError_NotSupported:
        total, used = None, 0.0
    return Gpu(
        index,
        pynvml.nvmlDeviceGetName(part),
        total,
        float(f"{major}.{minor}"),
        pynvml.nvmlDeviceGetUUID(part),
        used,
        _near_cores(card),
    )


def _near_cores(card: Any) -> frozenset[int]:
    try:
        words = pynvml.nvmlDeviceGetCpuAffinity(card, MOST_CORES // BITS_OF_A_WORD)
    except pynvml.NVMLError:
        return frozenset()
    return frozenset(
        place * BITS_OF_A_WORD + bit
        for place, word in enumerate(words)
        for bit in range(BITS_OF_A_WORD)
        if word >> bit & 1
    )


# ---- torch, where NVML does not answer

ASK_TORCH = """
import json, torch
def facts(i):
    device = torch.cuda.get_device_properties(i)
    free, total = torch.cuda.mem_get_info(i)
    return [device.name, total, total - free, float(f"{device.major}.{device.minor}")]
torch.cuda.init()
print(json.dumps([facts(i) for i in range(torch.cuda.device_count())]))
"""
PATIENCE_SECONDS = 120  # importing torch, and a driver that wakes its cards


def _from_torch(names: Optional[list[str]], reason: str) -> tuple[Gpu, ...]:
    """What torch sees in another process. ``names`` are those of CUDA_VISIBLE_DEVICES, None without it."""
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        seen = json.loads(answer.stdout) if answer.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _unknown(reason, f"{type(error).__name__}") from error
    if seen is None:
        raise _unknown(reason, answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else "it died")
    names = [str(index) for index in range(len(seen))] if names is None else names
    if len(seen) != len(names):
        raise ConfigError(f"{VISIBLE}={','.join(names)}: torch sees {len(seen)} GPU(s) of {len(names)} ({reason})")
    return tuple(
        Gpu(int(name) if name.isdecimal() else place, card, total / GIB, capability, name, used / GIB)
        for place, (name, (card, total, used, capability)) in enumerate(zip(names, seen, strict=True))
    )


def _unknown(nvml: str, torch: str) -> ConfigError:
    return ConfigError(
        f"an NVIDIA driver is here, but it does not tell which GPUs there are ({nvml}; torch: {torch}): mend it (sft"
        " doctor), or compute.device=cpu trains on the CPU"
    )
