"""C6: what watching a run costs, as a share of its training time: ``python -m benchmarks.monitoring_overhead``.

One run of the demo with TensorBoard and W&B (offline). In that one run, between the first and the last log event, CPU
time is told apart by who used it: the trainer's thread inside our callback (this delays every step), all other
threads of the process (trackers, their libraries), W&B's own process, and the rest, which is training. The ratio
comes from the same seconds of the same run, so that a busy machine does not bend it. Starting the trackers (imports,
W&B's process) happens once and is given apart.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import psutil
from transformers import TrainerCallback

from benchmarks.harness import table, write_result
from sft_experiments.commands import run
from sft_experiments.training import run as training_run
from sft_experiments.training.callbacks import MonitorCallback

LIMIT = 0.02


@dataclass(frozen=True)
class Spent:
    """CPU seconds so far, and wall seconds."""

    trainer_thread: float
    callback: float  # part of the trainer's thread
    other_threads: float
    wandb_process: float
    wall: float

    def since(self, earlier: "Spent") -> "Spent":
        return Spent(*(now - before for now, before in zip(astuple(self), astuple(earlier), strict=True)))


class TimedCallback(MonitorCallback):
    """MonitorCallback that notes what its calls and its company cost; ``latest`` is the one of the last run."""

    latest: "TimedCallback"

    def __init__(self, monitor: Any) -> None:
        super().__init__(monitor)
        self.callback_seconds = 0.0
        self.marks: list[tuple[int, Spent]] = []
        TimedCallback.latest = self
        for name in (name for name in dir(TrainerCallback) if name.startswith("on_")):
            setattr(self, name, self._timed(getattr(self, name)))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            began = time.thread_time()
            hook(args, state, control, **kwargs)
            self.callback_seconds += time.thread_time() - began
            if hook.__name__ == "on_log" and "loss" in kwargs["logs"]:
                self.marks.append((state.global_step, self._spent()))

        return timed

    def _spent(self) -> Spent:
        process = psutil.Process()
        others = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
        threads = sum(used.user_time + used.system_time for used in process.threads() if used.id in others)
        children = [child.cpu_times() for child in process.children() if "wandb" in child.name()]
        wandb = sum(used.user + used.system for used in children)
        return Spent(time.thread_time(), self.callback_seconds, threads, wandb, time.perf_counter())


def measure_run(max_steps: int, logging_steps: int) -> dict[str, Any]:
    """Shares of the training time of one demo run."""
    training_run.MonitorCallback = TimedCallback  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"train.max_steps={max_steps}", f"train.logging_steps={logging_steps}", f"output_dir={folder}"]
        fixed = [
            "logger=both",
            "compute.isolate=false",
            "compute.threads=1",
            f"train.eval_steps={max_steps}",
            "train.eval_on_start=false",
        ]
        run("train", [*settings, *fixed, "generation.num_samples=0", "generation.exact_match_rows=0"])
    marks = TimedCallback.latest.marks
    start = marks[len(marks) // 5]  # the trackers are running by then
    spent = marks[-1][1].since(start[1])
    training = spent.trainer_thread - spent.callback
    return {
        "steps": marks[-1][0] - start[0],
        "events": len(marks) - len(marks) // 5 - 1,
        "step_ms": 1e3 * training / (marks[-1][0] - start[0]),
        "callback_share": spent.callback / training,
        "threads_share": spent.other_threads / training,
        "wandb_process_share": spent.wandb_process / training,
        "start_seconds": start[1].other_threads + start[1].wandb_process,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--logging-steps", type=int, nargs="+", default=[20, 5, 1])
    arguments = parser.parse_args()
    runs = {every: measure_run(arguments.steps, every) for every in arguments.logging_steps}
    write_result("monitoring_overhead", {"limit": LIMIT, "runs": runs})
    headers = ["log every", "step, ms CPU", "in the step", "tracker threads", "W&B process", "once, s CPU"]
    keys = ("step_ms", "callback_share", "threads_share", "wandb_process_share", "start_seconds")
    print(table(headers, [[f"{every} steps", *(run[key] for key in keys)] for every, run in runs.items()]))


if __name__ == "__main__":
    main()
