"""C5: a 3x3 grid over learning rate and batch size, 20 steps a cell, on a tiny model.

``python -m benchmarks.grid``: `sft sweep` against a shell loop of `trl sft`, against TRL under Hydra's basic launcher
(all cells in one process), and under Hydra's joblib launcher with two workers and threads as they come. One measured
round, because a round takes minutes; of the shell loop a third, times three. Gate: the same training loss at every step
of every cell that was run.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import measure, table, write_result
from benchmarks.processes import python, run, sft
from benchmarks.world import Job, World, build_world, check_same_losses, our_losses, our_settings, peer_losses, trl_run

LEARNING_RATES = (5e-4, 1e-3, 2e-3)
BATCHES = (2, 4, 8)
TARGETS = {"loop of trl sft": 8.0, "Hydra basic + TRL": 3.0, "Hydra joblib n=2 + TRL": 10.0}


def cells(job: Job) -> list[Job]:
    return [replace(job, learning_rate=rate, batch=batch) for rate, batch in itertools.product(LEARNING_RATES, BATCHES)]


def our_sweep(world: World, job: Job, root: Path) -> tuple[float, float]:
    rates, batches = ",".join(map(str, LEARNING_RATES)), ",".join(map(str, BATCHES))
    axes = [f"train.learning_rate={rates}", f"train.effective_batch_size={batches}", "sweep.check=false"]
    settings = our_settings(world, job, root / "out")
    return run(sft("sweep", *settings, *axes), root, **world.environment)


def trl_loop(world: World, job: Job, root: Path) -> tuple[float, float]:
    """One learning rate of the grid is run, and its seconds taken times the number of learning rates."""
    spent = [
        run(trl_run(world, cell, root / "out" / f"{cell.learning_rate}-{cell.batch}"), root, **world.environment)
        for cell in cells(job)
        if cell.learning_rate == LEARNING_RATES[0]
    ]
    return len(LEARNING_RATES) * sum(cpu for cpu, _ in spent), len(LEARNING_RATES) * sum(wall for _, wall in spent)


def hydra_trl(world: World, job: Job, root: Path, *more: str, **environment: str) -> tuple[float, float]:
    files = [
        f"model={world.model}",
        f"data={world.data}",
        f"output={root}/out",
        f"steps={job.steps}",
        f"device={job.device}",
    ]
    axes = [f"learning_rate={','.join(map(str, LEARNING_RATES))}", f"batch={','.join(map(str, BATCHES))}"]
    folder = f"hydra.sweep.dir={root}/hydra"
    command = python("-m", "benchmarks.hydra_trl", "-m", *files, *axes, folder, *more)
    return run(command, root, **{**world.environment, **environment})


def hydra_joblib(world: World, job: Job, root: Path) -> tuple[float, float]:
    options = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    return hydra_trl(world, job, root, *options, OMP_NUM_THREADS="")


CONTENDERS: dict[str, Callable[[World, Job, Path], tuple[float, float]]] = {
    "sft sweep": our_sweep,
    "loop of trl sft": trl_loop,
    "Hydra basic + TRL": hydra_trl,
    "Hydra joblib n=2 + TRL": hydra_joblib,
}


def measure_grid(root: Path, job: Job, repeats: int, names: list[str]) -> dict[str, Any]:
    world = build_world(root / "world")
    outputs: dict[str, Path] = {}

    def contender(name: str) -> tuple[float, float]:
        outputs[name] = root / f"run-{len(list(root.iterdir()))}"  # a plain name: Hydra reads it on a command line
        return CONTENDERS[name](world, job, outputs[name])

    measured = measure({name: lambda name=name: contender(name) for name in names}, repeats, warmup=0)
    cpu = {name: result.cpu_median for name, result in measured.items()}
    peers = [name for name in names if name in TARGETS]
    return {
        "id": "C5",
        "repeats": repeats,
        "steps": job.steps,
        "cells": len(cells(job)),
        "largest_loss_difference": {name: check_cells(job, outputs["sft sweep"], outputs[name]) for name in peers},
        "cpu_seconds": cpu,
        "wall_seconds": {name: result.wall_median for name, result in measured.items()},
        "times": {name: cpu[name] / cpu["sft sweep"] for name in peers},
        "targets": TARGETS,
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }


def check_cells(job: Job, ours: Path, peer: Path, tolerance: float = 2e-3) -> float:
    """The largest difference of any step of any cell that the peer has run."""
    losses = our_losses(ours)
    folders = {cell: peer / "out" / f"{cell.learning_rate}-{cell.batch}" for cell in cells(job)}
    return max(
        check_same_losses(losses[cell.learning_rate, cell.batch], peer_losses(folder), tolerance)
        for cell, folder in folders.items()
        if folder.is_dir()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Job.steps)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", choices=TARGETS, default=list(TARGETS), help="peers to run")
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    names = ["sft sweep", *options.contenders]
    with tempfile.TemporaryDirectory() as folder:
        result = measure_grid(Path(folder), Job(options.steps), options.repeats, names)
    write_result("grid", result, options.results)
    rows = [
        (name, result["cpu_seconds"][name], result["wall_seconds"][name], result["times"].get(name, 1.0))
        for name in names
    ]
    print(table(("contender", "CPU s", "wall s", "times ours"), rows))


if __name__ == "__main__":
    main()
