"""A driver library for nvidia-ml-py to talk to, with the cards that a test describes; there is no GPU where it runs."""

import ctypes
from dataclasses import dataclass, field
from typing import Any, Optional

import pynvml
import pytest

from sft_experiments.plan import gpus as module
from sft_experiments.plan import machine

GIB = 2**30


@dataclass
class Card:
    """What the driver says of a card, or of a MIG instance of one."""

    uuid: str
    name: str = "Test GPU"
    total: Optional[float] = 80.0  # GiB; None: not supported (the host's memory)
    used: float = 0.0
    capability: tuple[int, int] = (9, 0)
    cores: tuple[int, ...] = ()
    instances: list["Card"] = field(default_factory=list)
    refuses: int = pynvml.NVML_SUCCESS  # the answer when its handle is asked for


class Driver:
    """libnvidia-ml.so.1: each method is one of its C functions."""

    def __init__(self, cards: list[Card], starts: int = pynvml.NVML_SUCCESS) -> None:
        self.cards, self.starts = cards, starts
        self.known = [known for card in cards for known in (card, *card.instances)]

    def _card(self, handle: Any) -> Card:
        number = ctypes.cast(handle, ctypes.c_void_p).value
        assert number is not None
        return self.known[number - 1]

    def _give(self, card: Card, handle: Any) -> Any:
        number = ctypes.c_void_p(self.known.index(card) + 1)
        ctypes.memmove(handle, ctypes.byref(number), ctypes.sizeof(number))
        return card.refuses

    def nvmlInitWithFlags(self, flags: int) -> Any:
        return self.starts

    def nvmlShutdown(self) -> Any:
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetCount_v2(self, count: Any) -> Any:
        count._obj.value = len(self.cards)
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> Any:
        return self._give(self.cards[index.value], handle)

    def nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> Any:
        if self._card(handle).capability < (8, 0):
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        current._obj.value = bool(self._card(handle).instances)
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> Any:
        count._obj.value = 7
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, part: Any) -> Any:
        instances = self._card(handle).instances
        if index.value >= len(instances):
            return pynvml.NVML_ERROR_NOT_FOUND
        return self._give(instances[index.value], part)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> Any:
        major._obj.value, minor._obj.value = self._card(handle).capability
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> Any:
        card = self._card(handle)
        if card.total is None:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        memory._obj.total, memory._obj.free = int(card.total * GIB), int((card.total - card.used) * GIB)
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: Any) -> Any:
        name.value = self._card(handle).name.encode()
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetUUID(self, handle: Any, uuid: Any, size: Any) -> Any:
        uuid.value = self._card(handle).uuid.encode()
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetCpuAffinity(self, handle: Any, size: int, words: Any) -> Any:
        cores = self._card(handle).cores
        if not cores:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        for core in cores:
            words._obj[core // 64] |= 1 << core % 64
        return pynvml.NVML_SUCCESS


def install(
    monkeypatch: pytest.MonkeyPatch,
    driver: Optional[Driver],
    visible: Optional[str] = None,
    torch: str = "2.13.0+cu130",
) -> None:
    """Put the driver's library, or none, where nvidia-ml-py looks for it, its environment, and a build of torch."""

    def load(name: str) -> Driver:
        assert name == "libnvidia-ml.so.1"
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(pynvml, "CDLL", load)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv(module.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(module.VISIBLE, visible)
    monkeypatch.setattr(machine, "installed_version", lambda package: torch if package == "torch" else None)
    module._visible.cache_clear()


def cards(*uuids: str) -> list[Card]:
    return [Card(uuid) for uuid in uuids]
