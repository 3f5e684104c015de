"""How often training makes the host wait for the device, and how long the device waits for the host."""

import tempfile
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks.gpu_contenders import Contender, Size, build_rows, build_trainer

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
WARM_UP, PROFILED = 3, 4  # optimizer steps


class Profiled(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    def __init__(self, cuda: bool) -> None:
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self.profiler, self.cuda = profile(activities=kinds), cuda

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            if self.cuda:
                torch.cuda.synchronize()
            self.profiler.start()
            self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start
        self.profiler.stop()


def idle_and_syncs(size: Size, how: Contender, device: str) -> dict[str, Any]:
    """Waits of each kind per step, and the share of the time in which no kernel ran (None without a GPU).

    Profiling slows the host down, so the idle share is an upper bound.
    """
    steps = WARM_UP + PROFILED
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_trainer(size, how, build_rows(size, how, steps), steps, device, folder)
        watch = Profiled(device == "cuda")
        trainer.add_callback(watch)
        trainer.train()
    events = watch.profiler.events()
    counts = {name: sum(event.name == name for event in events) / PROFILED for name in WAITS}
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    idle = 1 - covered(spans) / (watch.seconds * 1e6) if spans else None
    return {"waits_per_step": counts, "idle_share": idle, "step_ms": 1e3 * watch.seconds / PROFILED}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
