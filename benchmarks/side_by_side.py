"""C7: two trials at once against the same two one after another.

``python -m benchmarks.side_by_side``. Ideal: a trial costs as many CPU seconds with a neighbour as alone. Ours: a sweep
of two cells in the real pool, whose trials report what they used after the fork (imports do not count). The same with
as many threads per trial as there are cores, and the plain TRL script started twice with threads as they come. Gate:
the losses are the same however many run at once. Wall seconds say something on a quiet machine only.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

from benchmarks.harness import measure, table, write_result
from benchmarks.processes import CORES, python, run, run_together
from benchmarks.world import Job, World, build_world, check_same_losses, our_losses, our_settings, script_run
from sft_experiments.commands import run as run_command
from sft_experiments.launch import start
from sft_experiments.launch.trial import Trial
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import read_record
from sft_experiments.sweep import pool

SWEEP = "--sweep"
TARGET = 0.9
OURS = {  # trials at once, threads of each
    "ours, one after another": (1, 1),
    "ours, two at once": (2, 1),
    f"ours, two at once, {CORES} threads each": (2, CORES),
}
SCRIPTS = {  # copies at once, OMP_NUM_THREADS ("" leaves it unset)
    "TRL script, alone, 1 thread": (1, "1"),
    "TRL script, two at once, 1 thread each": (2, "1"),
    "TRL script, two at once, default threads": (2, ""),
}
BASE_OF = {name: next(iter(group)) for group in (OURS, SCRIPTS) for name in group}


def timed_work(folder: str, log: str, threads: int, devices: Optional[str]) -> None:
    """The child of the fork server, and what it used."""
    try:
        start._work(folder, log, threads, devices, ranks=1, sweep=0)
    finally:
        (Path(folder) / "cpu.json").write_text(json.dumps(time.process_time()))


class TimedStarter(start.WarmStarter):
    """The fork server, whose children write down the CPU time they used."""

    def start(self, trial: Trial, devices: Optional[str] = None) -> start.Worker:
        arguments = (str(trial.folder.path), str(trial.folder.log), trial.plan.threads, devices)
        process = start.multiprocessing.get_context("forkserver").Process(target=timed_work, args=arguments)
        process.start()
        return process


def run_sweep(arguments: list[str]) -> None:
    """Runs in a process of its own: `sft sweep` whose trials are timed."""
    pool.WarmStarter = TimedStarter  # type: ignore[misc]
    raise SystemExit(run_command("sweep", arguments))


def our_trials(world: World, job: Job, root: Path, at_once: int, threads: int) -> tuple[float, float]:
    """Seconds of one trial, as a mean over both."""
    shape = [
        "sweep.check=false",
        f"sweep.concurrent_trials={at_once}",
        f"compute.threads={threads}",
        f"train.effective_batch_size={job.batch}",
    ]
    axes = f"train.learning_rate={job.learning_rate},{job.learning_rate * 2}"
    settings = [*our_settings(world, job, root / "out"), *shape, axes]
    run(python("-m", "benchmarks.side_by_side", SWEEP, *settings), root, **world.environment)
    files = sorted(root.rglob("cpu.json"))
    walls = [read_record(RunFolder(file.parent)).timings["total"] for file in files]
    return sum(json.loads(file.read_text()) for file in files) / 2, sum(walls) / 2


def script_trials(world: World, job: Job, root: Path, at_once: int, threads: str) -> tuple[float, float]:
    """Seconds that the training took, as a mean over all copies."""
    commands = [script_run(world, job, root / str(index)) for index in range(at_once)]
    run_together(commands, root, **{**world.environment, "OMP_NUM_THREADS": threads})
    spent = [json.loads((root / str(index) / "seconds.json").read_text()) for index in range(at_once)]
    return sum(one["cpu"] for one in spent) / at_once, sum(one["wall"] for one in spent) / at_once


def measure_pairs(root: Path, job: Job, script_job: Job, repeats: int) -> dict[str, Any]:
    world = build_world(root / "world")
    roots: dict[str, Path] = {}

    def contender(name: str) -> tuple[float, float]:
        roots[name] = root / f"run-{len(list(root.iterdir()))}"
        if name in OURS:
            return our_trials(world, job, roots[name], *OURS[name])
        return script_trials(world, script_job, roots[name], *SCRIPTS[name])

    works = {name: lambda name=name: contender(name) for name in BASE_OF}  # type: ignore[misc]
    measured = measure(works, repeats, warmup=0)
    alone, *others = (our_losses(roots[name] / "out") for name in OURS)
    differences = [check_same_losses(losses[key], alone[key]) for losses in others for key in alone]
    cpu = {name: result.cpu_median for name, result in measured.items()}
    wall = {name: result.wall_median for name, result in measured.items()}
    return {
        "id": "C7",
        "repeats": repeats,
        "largest_loss_difference": max(differences),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "of_ideal": {name: cpu[base] / cpu[name] for name, base in BASE_OF.items()},
        "of_ideal_wall": {name: wall[base] / wall[name] for name, base in BASE_OF.items()},
        "target": TARGET,
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of ours; the script, which is slower, trains a sixth")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, help="another folder for the result")
    parser.add_argument(SWEEP, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sweep is not None:
        run_sweep(options.sweep)
    with tempfile.TemporaryDirectory() as folder:
        jobs = Job(options.steps), Job(max(1, options.steps // 6))
        result = measure_pairs(Path(folder), *jobs, options.repeats)
    write_result("side_by_side", result, options.results)
    keys = ("cpu_seconds", "wall_seconds", "of_ideal", "of_ideal_wall")
    rows = [(name, *(result[key][name] for key in keys)) for name in BASE_OF]
    print(table(("contender", "CPU s a trial", "wall s", "of ideal, CPU", "of ideal, wall"), rows))


if __name__ == "__main__":
    main()
