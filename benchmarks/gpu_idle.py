"""How often training makes the host wait for the device, and how long the device waits for the host.

``python -m benchmarks.gpu_idle FILE SETTING...`` is `sft train SETTING...` under the profiler, in this process.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks.gpu_contenders import Contender, Size, build_rows, build_trainer
from sft_experiments.commands import main
from sft_experiments.training import run

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
WARM_UP, PROFILED = 3, 4  # optimizer steps
STEPS = WARM_UP + PROFILED


class Profiled(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Belongs last in the list of callbacks. What comes after the last step, an evaluation, is left out."""

    def __init__(self, cuda: bool) -> None:
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self.profiler, self.cuda = profile(activities=kinds), cuda

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self._synchronize()
            self.profiler.start()
            self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEPS:
            self._synchronize()
            self.seconds = time.perf_counter() - self.start
            self.profiler.stop()

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def found(self) -> dict[str, Any]:
        """Waits of each kind per step, and the share of the time in which no kernel ran (None without a GPU).

        Profiling slows the host down, so the idle share is an upper bound.
        """
        events = self.profiler.events()
        counts = {name: sum(event.name == name for event in events) / PROFILED for name in WAITS}
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        idle = 1 - covered(spans) / (self.seconds * 1e6) if spans else None
        return {"waits_per_step": counts, "idle_share": idle, "step_ms": 1e3 * self.seconds / PROFILED}


def idle_of_trl(size: Size, how: Contender, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_trainer(size, how, build_rows(size, how, STEPS), STEPS, device, folder)
        watch = Profiled(device == "cuda")
        trainer.add_callback(watch)
        trainer.train()
    return watch.found()


def profile_sft_train(settings: list[str], file: Path) -> int:
    """The command as it is, with one callback more; its exit code."""
    watch = Profiled("compute.device=cuda" in settings)
    callbacks = run.callbacks
    run.callbacks = lambda *known: [*callbacks(*known), watch]
    code = main(["train", *settings, "compute.isolate=false"])
    if code == 0:
        file.write_text(json.dumps(watch.found()))
    return code


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


if __name__ == "__main__":
    sys.exit(profile_sft_train(sys.argv[2:], Path(sys.argv[1])))
